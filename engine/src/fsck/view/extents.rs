//! The set's extents, btree and journal merged, in order.

use super::devices::Cache;
use super::fault::Fault;
use super::gens::Gens;
use super::node::{NodeView, SeenNode};
use super::overlay::{Layer, Overlay};
use super::set::SetView;
use bcache_format::{Bkey, Pos, Ptr};

impl SetView {
    /// The extents of `from..to`, in order.
    #[must_use]
    pub fn extents(&self, from: Pos, to: Pos) -> Extents<'_> {
        Extents::new(self, from, to, Trust::Readable)
    }

    /// The extents of `from..to` without those of nodes that could not be read whole.
    #[must_use]
    pub fn trusted_extents(&self, from: Pos, to: Pos) -> Extents<'_> {
        Extents::new(self, from, to, Trust::Whole)
    }

    /// What the btree has between two positions, whatever the journal says.
    pub(crate) fn tree_extents(&self, from: Pos, to: Pos) -> impl Iterator<Item = Result<Bkey, Fault>> + '_ {
        let keys = Leaves::new(self, from, to, Trust::Whole);
        keys.filter(move |key| key.as_ref().map_or(true, |key| key.pos() > from && key.start_pos() < to))
    }
}

/// What an extent's pointer is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PtrState {
    /// The data is on the cache device, at this pointer.
    Live(Ptr),
    /// The bucket has been reused, or may have been, this many generations ago: a miss.
    Stale(u8),
    /// Without a pointer: it only hides older keys. A miss.
    Empty,
    /// Pointer to a device that no set has, such as the placeholder of a cache miss. A miss.
    NoDevice,
}

/// One extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenExtent {
    /// Its key, cut to what newer ones leave of it.
    pub key: Bkey,
    /// What its pointer is worth.
    pub state: PtrState,
    /// Whether it is in the btree, or newer and only in the journal.
    pub layer: Layer,
}

impl SeenExtent {
    /// The key's worth (`bch_extent_bad`).
    #[must_use]
    pub fn new(key: Bkey, layer: Layer, gens: &Gens) -> Self {
        let stale = gens.stale_key(&key);
        let state = match key.ptr() {
            None => PtrState::Empty,
            Some(_) if key.ptrs().iter().any(|ptr| !ptr.is_device()) => PtrState::NoDevice,
            Some(_) if stale > 0 => PtrState::Stale(stale),
            Some(ptr) => PtrState::Live(ptr),
        };
        Self { key, state, layer }
    }
    /// Where its data is, unless it is a miss.
    #[must_use]
    pub const fn live(&self) -> Option<Ptr> {
        match self.state {
            PtrState::Live(ptr) => Some(ptr),
            _ => None,
        }
    }
}

/// Which keys count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// All that can be read, also of nodes whose newest keys are lost.
    Readable,
    /// Only keys of nodes that are in their place.
    Whole,
}

/// Extents of a range, in order. After an error the walk may be continued: what follows is what could be read.
pub struct Extents<'v> {
    merged: Overlay<Leaves<'v>, Box<dyn Iterator<Item = Bkey> + Send + 'v>, Fault>,
    gens: &'v Gens,
    from: Pos,
    to: Pos,
}

impl<'v> Extents<'v> {
    /// The extents of `from..to`, cut to it.
    #[must_use]
    pub fn new(view: &'v SetView, from: Pos, to: Pos, trust: Trust) -> Self {
        let leaves = Leaves::new(view, from, to, trust);
        let journal = Box::new(view.replayed.from(from).take_while(move |key| key.start_pos() < to));
        Self { merged: Overlay::new(leaves, journal), gens: &view.gens, from, to }
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<SeenExtent, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (mut key, layer) = match self.merged.next()? {
                Ok(found) => found,
                Err(fault) => return Some(Err(fault)),
            };
            if !key.cut_front(self.from) || !key.cut_back(self.to) {
                continue;
            }
            return Some(Ok(SeenExtent::new(key, layer, self.gens)));
        }
    }
}

/// The btree's extents alone.
pub(super) struct Leaves<'v> {
    cache: &'v Cache,
    leaves: std::slice::Iter<'v, SeenNode>,
    trust: Trust,
    keys: std::vec::IntoIter<Bkey>,
    faults: std::vec::IntoIter<Fault>,
}

impl<'v> Leaves<'v> {
    /// Of the leaves that have something between two positions.
    pub(super) fn new(view: &'v SetView, from: Pos, to: Pos, trust: Trust) -> Self {
        let first = view.leaves.partition_point(|leaf| leaf.key.pos() <= from);
        let leaves = view.leaves.get(first..).unwrap_or_default();
        let leaves = leaves.get(..leaves.partition_point(|leaf| leaf.lower < to)).unwrap_or_default();
        let (keys, faults) = (Vec::new().into_iter(), Vec::new().into_iter());
        Self { cache: &view.cache, leaves: leaves.iter(), trust, keys, faults }
    }
}

impl Iterator for Leaves<'_> {
    type Item = Result<Bkey, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(fault) = self.faults.next() {
                return Some(Err(fault));
            }
            if let Some(key) = self.keys.next() {
                return Some(Ok(key));
            }
            let at = self.leaves.next()?;
            match NodeView::read(self.cache, *at) {
                Err(fault) => return Some(Err(fault.hiding(at.lower, at.key.pos()))),
                Ok(node) => {
                    self.faults = node.faults.into_iter();
                    if node.usable || self.trust == Trust::Readable {
                        self.keys = node.keys.into_iter();
                    }
                }
            }
        }
    }
}
