//! What a Translation Request is granted of what a translation permits (section 13.7.1).

use pgtable::Permissions;

use crate::translate::{Origin, Txn, wanted};

/// R, W and Exe of a Translation Completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) execute: bool,
}

impl Grant {
    pub(crate) fn any(self) -> bool {
        self.read || self.write || self.execute
    }
}

impl Txn {
    /// What `permissions` grant this Translation Request.
    pub(crate) fn granted(&self, permissions: Permissions) -> Grant {
        let Origin::AtsRequest { execute, .. } = self.origin else {
            return Grant { read: false, write: false, execute: false };
        };
        let (read, write, exec) = match self.t.privileged {
            true => (Permissions::PRIV_READ, Permissions::PRIV_WRITE, Permissions::PRIV_EXEC),
            false => (Permissions::USER_READ, Permissions::USER_WRITE, Permissions::USER_EXEC),
        };
        let [read, write, exec] = [read, write, exec].map(|p| permissions.contains(p));
        // INSTCFG says what a read is: 2 always data, 3 always an instruction fetch.
        let (read, execute) = match self.stream.overrides.instcfg {
            2 => (read, execute && read),
            3 => (exec, execute && exec),
            // Execute implies read: an execute-only page cannot be had through ATS.
            _ => (read, execute && read && exec),
        };
        Grant { read, write, execute }
    }

    /// Whether `permissions` decide about it: granted or not, without another look at the tables. `possible` is what a
    /// walk might come to.
    pub(crate) fn decided(&self, permissions: Permissions, possible: Permissions) -> Option<bool> {
        match self.origin {
            Origin::AtsRequest { no_write, .. } => {
                let (now, then) = (self.granted(permissions), self.granted(possible));
                // A request that will not write does not make a page dirty, so it need not look.
                let same = now == Grant { write: if no_write { now.write } else { then.write }, ..then };
                same.then_some(true)
            }
            _ if permissions.contains(wanted(&self.t)) => Some(true),
            _ if !possible.contains(wanted(&self.t)) => Some(false),
            _ => None,
        }
    }

    /// Whether it makes a page that permits `possible` dirty.
    pub(crate) fn dirties(&self, possible: Permissions) -> bool {
        match self.origin {
            Origin::AtsRequest { no_write, .. } => !no_write && self.granted(possible).write,
            _ => !self.t.kind.is_read(),
        }
    }

    /// The permissions that it cannot do without. A Translation Request takes what there is.
    pub(crate) fn needed(&self) -> Permissions {
        if self.is_ats_request() { Permissions::empty() } else { wanted(&self.t) }
    }
}
