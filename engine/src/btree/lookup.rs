//! Looking up where sectors are.

use super::extent::Extent;
use super::node::{Body, Node, NodeRef};
use crate::error::Result;
use crate::set::CacheSet;
use bcache_format::Pos;
use bcache_format::{Sector, Span};
use std::rc::Rc;

/// A part of a range, as the btree knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// In the cache.
    Cached(Extent),
    /// Not in the cache.
    Missing(Span),
}

impl CacheSet {
    /// The node of `level` that the extents ending behind `pos` begin in: from memory, or which node must be read first.
    pub(crate) fn resident(&self, pos: Pos, level: u8) -> std::result::Result<Rc<Node>, NodeRef> {
        let mut node = self.tree.root();
        while node.level > level {
            let child = {
                let state = node.state();
                let Body::Interior { children, .. } = &state.body else { break };
                // Positions are below the largest, where the last child ends.
                let at = children.partition_point(|child| child.max <= pos).min(children.len() - 1);
                children[at]
            };
            let below = node.level - 1;
            match self.tree.get(self.cache.geometry.ptr_bucket(child.ptr)) {
                Some(next) if next.ptr == child.ptr && next.level == below => node = next,
                _ => return Err(NodeRef { ptr: child.ptr, level: below, max: child.max }),
            }
        }
        Ok(node)
    }

    /// The node of `level` for `pos`; only the caller waits when nodes must be read. No await may stand between this and
    /// the use of what it answers, or the node may have been replaced.
    pub(crate) async fn node_at(&self, pos: Pos, level: u8) -> Result<Rc<Node>> {
        self.node_in_hand(pos, level, &mut Vec::new()).await
    }

    /// The same. What had to be read for it is added to `held`: in hand until all is there, or reading one node could put
    /// another of the same path out of memory, for ever.
    pub(crate) async fn node_in_hand(
        &self,
        pos: Pos,
        level: u8,
        held: &mut Vec<Rc<Node>>,
    ) -> Result<Rc<Node>> {
        loop {
            match self.resident(pos, level) {
                Ok(node) => return Ok(node),
                Err(wanted) => {
                    let read = self.node(wanted).await;
                    if !seeded_bug!(PathNotHeld) {
                        held.extend(read.iter().cloned());
                    }
                    // While it was read it may have been replaced; then its failure means nothing.
                    if let Err(error) = read
                        && self.resident(pos, wanted.level).is_err_and(|now| now.ptr == wanted.ptr)
                    {
                        self.fail_if_untrusted(&error);
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Collects what the btree knows of the sectors of `span`, as far as nodes in memory say. Answers what is left of it
    /// where a node must be read; nothing when it came to the end.
    pub fn pieces_resident(&self, span: Span, pieces: &mut Vec<Piece>) -> Option<Span> {
        let (inode, mut at) = (span.inode, span.start);
        while at < span.end {
            let Ok(leaf) = self.resident(span.from(at).start_pos(), 0) else { return Some(span.from(at)) };
            let leaf_end = end_in(&leaf, span);
            let state = leaf.state();
            let Body::Leaf { map, .. } = &state.body else { return None };
            let buckets = self.alloc.buckets.borrow();
            for extent in map.iter_from(span.from(at).start_pos()) {
                if extent.inode() != inode || extent.start() >= leaf_end {
                    break;
                }
                // A pointer whose bucket moved on says nothing.
                if buckets.staleness(extent.ptr()) > 0 {
                    continue;
                }
                let part = extent.part(at, leaf_end);
                if part.start() > at {
                    push_missing(pieces, Span::new(inode, at, part.start()));
                }
                at = part.end();
                pieces.push(Piece::Cached(part));
            }
            if at < leaf_end {
                push_missing(pieces, Span::new(inode, at, leaf_end));
                at = leaf_end;
            }
        }
        None
    }

    /// All extents that overlap `span`, those too whose buckets moved on: on disk the bucket's
    /// generation may still be the old one, and after a crash such an extent counts again.
    pub(crate) async fn extents_of(&self, span: Span) -> Result<Vec<Extent>> {
        let mut found = Vec::new();
        let mut at = span.start;
        while at < span.end {
            let leaf = self.node_at(span.from(at).start_pos(), 0).await?;
            let leaf_end = end_in(&leaf, span);
            let state = leaf.state();
            let Body::Leaf { map, .. } = &state.body else { break };
            let here = map.iter_from(span.from(at).start_pos());
            let here = here.take_while(|extent| extent.inode() == span.inode && extent.start() < leaf_end);
            found.extend(here.map(|extent| extent.part(at, leaf_end)));
            at = leaf_end;
        }
        Ok(found)
    }

    /// What the btree knows of the sectors of `span`, in order and without gaps.
    pub async fn pieces(&self, span: Span) -> Result<Vec<Piece>> {
        let mut pieces = Vec::with_capacity(1);
        let mut rest = span;
        let mut held = Vec::new();
        while let Some(left) = self.pieces_resident(rest, &mut pieces) {
            rest = left;
            self.node_in_hand(rest.start_pos(), 0, &mut held).await?;
        }
        Ok(pieces)
    }
}

/// Where what a leaf says of `span` ends.
fn end_in(leaf: &Node, span: Span) -> Sector {
    if leaf.max.inode == span.inode { Sector(leaf.max.offset).min(span.end) } else { span.end }
}

fn push_missing(pieces: &mut Vec<Piece>, span: Span) {
    if let Some(Piece::Missing(last)) = pieces.last_mut()
        && last.end == span.start
    {
        last.end = span.end;
        return;
    }
    pieces.push(Piece::Missing(span));
}
