//! `bcache dump btree`.

use anyhow::Result;
use bcache_engine::fsck::view::node::NodeView;
use bcache_engine::fsck::view::prio::PrioChain;
use bcache_engine::fsck::view::tree::{Step, Walk, root};
use bcache_engine::fsck::view::{Cache, Gens};
use bcache_format::Pos;
use serde_json::json;

use super::{Printer, journal, key_json, pos};

/// Bset sizes printed of a node; more are only counted.
const SETS_SHOWN: usize = 6;

pub(super) fn print(cache: &Cache, keys: bool, to: &mut Printer<'_, '_>) -> Result<()> {
    let journal = journal(cache, to)?;
    let Some(newest) = journal.newest() else { return Ok(()) };
    let number = cache.sb.cache().map_or(0, |cache| usize::from(cache.nr_this_dev));
    let first = newest.jset.prio_bucket.get(number).copied().unwrap_or_default();
    let prios = PrioChain::read(cache, first, newest.byte);
    if let Some(fault) = &prios.broken {
        to.fault(fault)?;
    }
    let root = match root(cache, newest) {
        Ok(root) => root,
        Err(fault) => return to.fault(&fault),
    };
    let mut gens = Gens::new(cache.geometry, prios.gens());
    let mut walk = Walk::new(cache, root, Pos::ZERO, Pos::MAX);
    while let Some(step) = walk.step(&mut gens) {
        match step {
            Step::Fault(fault) => to.fault(&fault)?,
            Step::Node(node) => {
                print_node(cache, &node, root.level, &gens, keys, to)?;
                for fault in &node.faults {
                    to.fault(fault)?;
                }
            }
        }
    }
    Ok(())
}

fn print_node(
    cache: &Cache,
    node: &NodeView,
    root_level: u16,
    gens: &Gens,
    keys: bool,
    to: &mut Printer<'_, '_>,
) -> Result<()> {
    let (level, bucket) = (node.at.level, cache.geometry.ptr_bucket(node.ptr));
    let node_bytes = node.at.key.size() * bcache_format::SECTOR_SIZE;
    let range = format!("{} to {}", pos(node.at.lower), pos(node.at.key.pos()));
    let text = || {
        let sizes: Vec<_> = node.sets.iter().take(SETS_SHOWN).map(|set| set.bytes.to_string()).collect();
        let more = node.sets.len().saturating_sub(SETS_SHOWN);
        let more = if more > 0 { format!("+{more} more") } else { String::new() };
        let indent = "  ".repeat(usize::from(root_level.saturating_sub(level)));
        let what = if level == root_level {
            "root"
        } else if level == 0 {
            "leaf"
        } else {
            "node"
        };
        let children =
            node.keys.iter().filter(|key| key.pos() != Pos::ZERO && gens.stale_key(key) == 0).count();
        let holds = if level == 0 { "extents" } else { "children" };
        let count = if level == 0 { node.keys.len() } else { children };
        format!(
            "{indent}{what} level {level} {range}: bucket {bucket} gen {}, {count} {holds}\n{indent}  \
             seq {:016x}, {} of {node_bytes} bytes, bsets {}{more}",
            node.ptr.generation(),
            node.seq,
            node.written,
            sizes.join("+"),
        )
    };
    to.line(text, || {
        let list = if keys { node.keys.iter().map(key_json).collect() } else { Vec::new() };
        let sets: Vec<_> = node
            .sets
            .iter()
            .map(|set| json!({"offset": set.offset, "bytes": set.bytes, "keys": set.keys}))
            .collect();
        json!({"kind": "node", "level": level, "bucket": bucket, "byte": node.byte,
               "gen": node.ptr.generation(), "seq": format!("{:016x}", node.seq), "written": node.written,
               "bytes": node_bytes, "lower": node.at.lower, "upper": node.at.key.pos(), "sets": sets,
               "key_count": node.keys.len(), "keys": list})
    })?;
    if keys && !to.json {
        for key in &node.keys {
            let stale = gens.stale_key(key);
            let note = if key.pos() == Pos::ZERO {
                " freed".to_owned()
            } else if stale > 0 {
                format!(" stale by {stale}")
            } else {
                String::new()
            };
            to.line(|| format!("      {key}{note}"), || json!(null))?;
        }
    }
    Ok(())
}
