//! The common configuration structure (virtio 1.3 §4.1.4.3).

use serde::{Deserialize, Serialize};

use super::queue::NO_VECTOR;
use super::{Virtqueue, feature};
use crate::agent::Time;
use crate::bus::size_mask;

/// Bits of the device status field (virtio 1.3 §2.1).
pub(super) mod status {
    pub(in super::super) const ACKNOWLEDGE: u8 = 1;
    pub(in super::super) const DRIVER: u8 = 2;
    pub(in super::super) const DRIVER_OK: u8 = 4;
    pub(in super::super) const FEATURES_OK: u8 = 8;
    pub(in super::super) const NEEDS_RESET: u8 = 64;
    pub(in super::super) const FAILED: u8 = 128;
}

/// Offsets of the fields.
pub(super) mod field {
    pub(in super::super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(in super::super) const DEVICE_FEATURE: u64 = 0x04;
    pub(in super::super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(in super::super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(in super::super) const CONFIG_VECTOR: u64 = 0x10;
    pub(in super::super) const NUM_QUEUES: u64 = 0x12;
    pub(in super::super) const DEVICE_STATUS: u64 = 0x14;
    pub(in super::super) const CONFIG_GENERATION: u64 = 0x15;
    pub(in super::super) const QUEUE_SELECT: u64 = 0x16;
    pub(in super::super) const QUEUE_SIZE: u64 = 0x18;
    pub(in super::super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(in super::super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(in super::super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(in super::super) const QUEUE_DESC: u64 = 0x20;
    pub(in super::super) const QUEUE_DRIVER: u64 = 0x28;
    pub(in super::super) const QUEUE_DEVICE: u64 = 0x30;
    pub(in super::super) const QUEUE_RESET: u64 = 0x3a;
    /// Bytes of the structure, up to the administration virtqueue's fields, which read zero.
    pub(in super::super) const END: u64 = 0x40;
}

/// The registers of the structure that are not a queue's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Common {
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) config_vector: u16,
    pub(super) status: u8,
    pub(super) queue_select: u16,
    pub(super) isr: u8,
    /// When the reset that the driver asked for happens.
    pub(super) reset_at: Option<Time>,
}

impl Common {
    /// The state after reset.
    pub(super) fn new() -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            isr: 0,
            reset_at: None,
        }
    }

    /// Whether the device may use its queues.
    pub(super) fn running(&self) -> bool {
        let ready = status::DRIVER_OK | status::FEATURES_OK;
        self.status & (ready | status::NEEDS_RESET) == ready
    }

    /// Reads any aligned 1 to 8 bytes.
    pub(super) fn read(&self, offset: u64, size: u8, offered: u64, queues: &[Virtqueue]) -> u64 {
        let (start, width, value) = self.field(offset, offered, queues);
        let shift = 8 * (offset - start);
        let within = offset + u64::from(size) <= start + width;
        if within && shift < 64 { value >> shift & size_mask(size) } else { 0 }
    }

    /// The field that an offset lies in: start, bytes, value.
    fn field(&self, offset: u64, offered: u64, queues: &[Virtqueue]) -> (u64, u64, u64) {
        let queue = queues.get(usize::from(self.queue_select));
        let of = |f: fn(&Virtqueue) -> u64| queue.map_or(0, f);
        match offset {
            0x00..0x04 => (field::DEVICE_FEATURE_SELECT, 4, self.device_feature_select.into()),
            0x04..0x08 => (field::DEVICE_FEATURE, 4, half(offered, self.device_feature_select)),
            0x08..0x0c => (field::DRIVER_FEATURE_SELECT, 4, self.driver_feature_select.into()),
            0x0c..0x10 => (field::DRIVER_FEATURE, 4, half(self.driver_features, self.driver_feature_select)),
            0x10..0x12 => (field::CONFIG_VECTOR, 2, self.config_vector.into()),
            0x12..0x14 => (field::NUM_QUEUES, 2, queues.len() as u64),
            0x14 => (field::DEVICE_STATUS, 1, self.status.into()),
            // The configuration of these devices never changes by itself.
            0x15 => (field::CONFIG_GENERATION, 1, 0),
            0x16..0x18 => (field::QUEUE_SELECT, 2, self.queue_select.into()),
            0x18..0x1a => (field::QUEUE_SIZE, 2, of(|q| q.areas.size.into())),
            0x1a..0x1c => (field::QUEUE_VECTOR, 2, queue.map_or(NO_VECTOR, |q| q.vector).into()),
            0x1c..0x1e => (field::QUEUE_ENABLE, 2, of(|q| q.enabled().into())),
            0x1e..0x20 => (field::QUEUE_NOTIFY_OFF, 2, queue.map_or(0, |_| self.queue_select.into())),
            0x20..0x28 => (field::QUEUE_DESC, 8, of(|q| q.areas.desc)),
            0x28..0x30 => (field::QUEUE_DRIVER, 8, of(|q| q.areas.driver)),
            0x30..0x38 => (field::QUEUE_DEVICE, 8, of(|q| q.areas.device)),
            0x3a..0x3c => (field::QUEUE_RESET, 2, of(|q| q.reset_at.is_some().into())),
            _ => (offset, 8, 0),
        }
    }

    /// The driver wrote `value` to the status field, and it was not zero. `true`: the driver is ready now and was not
    /// before.
    pub(super) fn set_status(&mut self, value: u8, offered: u64) -> bool {
        let before = self.status;
        let mut set = value & (status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK | status::FAILED);
        let acceptable = self.driver_features & !offered == 0
            && self.driver_features & feature::REQUIRED == feature::REQUIRED;
        if value & status::FEATURES_OK != 0 && acceptable {
            set |= status::FEATURES_OK;
        }
        // Only a reset clears bits.
        self.status |= set;
        self.running() && before & status::DRIVER_OK == 0
    }

    /// The driver wrote its half of the features.
    pub(super) fn set_driver_features(&mut self, value: u32) {
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            // Features 64 and up: none is offered.
            _ => return,
        };
        if self.status & status::FEATURES_OK == 0 {
            let keep = self.driver_features & !(0xffff_ffff << shift);
            self.driver_features = keep | u64::from(value) << shift;
        }
    }
}

/// 32 bits of 64.
fn half(value: u64, select: u32) -> u64 {
    match select {
        0 => value & 0xffff_ffff,
        1 => value >> 32,
        _ => 0,
    }
}
