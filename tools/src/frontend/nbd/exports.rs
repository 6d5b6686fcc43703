//! What the server offers, and under which names.

use std::cell::RefCell;
use std::rc::Rc;

use bcache_engine::volume::Volume;

/// One line of a list of exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// The name clients ask for.
    pub name: String,
    /// Words for people.
    pub description: String,
}

/// Where the server finds volumes by name.
pub trait Exports {
    /// The volume a client asked for; the empty name asks for the usual one.
    fn find(&self, name: &str) -> Option<Rc<dyn Volume>>;

    /// All there is.
    fn list(&self) -> Vec<ExportInfo>;
}

/// Volumes in order. Each is found by its name, its label, its uuid and its index; the empty name finds the first.
#[derive(Default)]
pub struct ExportTable {
    volumes: RefCell<Vec<Rc<dyn Volume>>>,
}

impl ExportTable {
    /// A table of `volumes`.
    pub fn new(volumes: Vec<Rc<dyn Volume>>) -> ExportTable {
        ExportTable { volumes: RefCell::new(volumes) }
    }

    /// Adds a volume at the end. Clients connected already do not notice.
    pub fn add(&self, volume: Rc<dyn Volume>) {
        self.volumes.borrow_mut().push(volume);
    }

    /// Takes volumes out by uuid. Clients connected to them keep them.
    pub fn remove(&self, uuid: uuid::Uuid) {
        self.volumes.borrow_mut().retain(|volume| volume.id().uuid != uuid);
    }
}

impl Exports for ExportTable {
    fn find(&self, name: &str) -> Option<Rc<dyn Volume>> {
        let volumes = self.volumes.borrow();
        if name.is_empty() {
            return volumes.first().cloned();
        }
        // A name proper wins over a label that says the same, and both over an index.
        let by =
            |wanted: &dyn Fn(&Rc<dyn Volume>) -> bool| volumes.iter().find(|volume| wanted(volume)).cloned();
        by(&|volume| volume.id().name == name)
            .or_else(|| by(&|volume| volume.id().label == name))
            .or_else(|| {
                name.parse::<uuid::Uuid>().ok().and_then(|uuid| by(&|volume| volume.id().uuid == uuid))
            })
            .or_else(|| name.parse::<usize>().ok().and_then(|index| volumes.get(index).cloned()))
    }

    fn list(&self) -> Vec<ExportInfo> {
        let describe = |volume: &Rc<dyn Volume>| {
            let id = volume.id();
            let label = if id.label.is_empty() { String::new() } else { format!("label {}, ", id.label) };
            ExportInfo { name: id.name, description: format!("{label}uuid {}", id.uuid) }
        };
        self.volumes.borrow().iter().map(describe).collect()
    }
}
