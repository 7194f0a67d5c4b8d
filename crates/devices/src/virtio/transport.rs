//! The modern virtio-pci transport (virtio 1.3 §4.1).

use std::any::Any;

use serde::{Deserialize, Serialize};

use super::queue::{NO_VECTOR, VirtqueueState};
use super::registers::{Common, field, status};
use super::{DeviceState, Io, Timing, VirtioDevice, Virtqueue, feature};
use crate::agent::{Time, earliest};
use crate::bounce::{Bounce, BounceStats};
use crate::bus::size_mask;
use crate::dma::{AtcConfig, AtsState, DmaPort, Stats};
use crate::pci::{
    AtsCapabilities, AtsOptions, Bar, CAP_MSIX, ConfigSpace, FunctionState, Ids, Msix, PciFunction,
    StateError,
};

const MSIX_BAR: usize = 1;
const REGISTER_BAR: usize = 4;
const REGISTER_BAR_SIZE: u64 = 0x4000;

/// The structures in the register BAR: one page each.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const PAGE: u64 = 0x1000;
const NOTIFY_MULTIPLIER: u32 = 4;

const CAP_VENDOR: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

const ISR_CONFIG: u8 = 2;

/// Lane of the device itself, and of its interrupt messages.
const LANE_DEVICE: usize = 0;
const LANE_MSIX: usize = 1;
/// Lane of the invalidations of the translation cache, if there is one.
const LANE_ATC: usize = 2;

/// A virtio device as a PCI function.
pub struct VirtioPci<D> {
    config: ConfigSpace,
    msix_at: u16,
    /// Offset of the capability that gives access to the BARs through configuration space.
    window_at: u16,
    msix: Msix,
    port: DmaPort,
    timing: Timing,
    /// Features that are offered beside what all such devices offer.
    extra: u64,
    common: Common,
    queues: Vec<Virtqueue>,
    device: D,
    ats: Option<AtsCapabilities>,
}

/// The state of a virtio function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState {
    config: ConfigSpace,
    msix: Msix,
    stats: Stats,
    common: Common,
    queues: Vec<VirtqueueState>,
    device: DeviceState,
    bounce: Option<BounceStats>,
    ats: Option<AtsState>,
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// A function for `device` that reaches memory through `port`.
    pub fn new(port: DmaPort, device: D, timing: Timing) -> Self {
        let queues: Vec<_> = device.queue_sizes().iter().map(|&n| Virtqueue::new(n)).collect();
        let mut config = ConfigSpace::new(Ids {
            vendor: 0x1af4,
            device: 0x1040 + device.device_id(),
            revision: 1,
            class: device.class(),
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        config.add_bar(MSIX_BAR, Bar::Memory32(Msix::WINDOW as u32));
        config.add_bar(REGISTER_BAR, Bar::Memory64(REGISTER_BAR_SIZE));
        config.add_express();
        let msix = Msix::new(queues.len() as u16 + 1);
        let (body, writable) = msix.capability(MSIX_BAR as u8);
        let msix_at = config.add_capability(CAP_MSIX, &body, &writable);
        let device_len = (device.config().len() as u32).next_multiple_of(4);
        add_structure(&mut config, CFG_COMMON, COMMON, field::END as u32, &[]);
        add_structure(&mut config, CFG_ISR, ISR, 4, &[]);
        if device_len > 0 {
            add_structure(&mut config, CFG_DEVICE, DEVICE, device_len, &[]);
        }
        let notify_len = queues.len() as u32 * NOTIFY_MULTIPLIER;
        add_structure(&mut config, CFG_NOTIFY, NOTIFY, notify_len, &NOTIFY_MULTIPLIER.to_le_bytes());
        let window_at = add_structure(&mut config, CFG_PCI, 0, 0, &[0; 4]);
        let (msix_at, window_at) = (u16::from(msix_at), u16::from(window_at));
        port.set_enabled(false);
        let (common, ats) = (Common::new(), None);
        Self { config, msix_at, window_at, msix, port, timing, extra: 0, common, queues, device, ats }
    }

    /// The same, offering these features of the transport as well: [`feature::RING_PACKED`] or none.
    #[must_use]
    pub fn offering(self, features: u64) -> Self {
        Self { extra: features & feature::RING_PACKED, ..self }
    }

    /// The same with ATS, which software may enable. It makes no page requests: a ring cannot wait for a page.
    #[must_use]
    pub fn with_ats(mut self, atc: AtcConfig) -> Self {
        let options = AtsOptions { atc, pri: None };
        self.ats = Some(AtsCapabilities::add(&mut self.config, &self.port, &options));
        self
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    fn offered(&self) -> u64 {
        feature::COMMON | self.extra | self.device.features()
    }

    fn running(&self) -> bool {
        self.common.running() && self.port.enabled()
    }

    /// Resets the device, not the function (virtio 1.3 §2.4).
    fn reset_device(&mut self) {
        self.device.reset(&self.port);
        self.queues.iter_mut().for_each(Virtqueue::reset);
        self.common = Common::new();
        if let Some(onlooker) = self.port.onlooker() {
            onlooker.reset(&self.port, None);
        }
    }

    fn reset_queue(&mut self, index: usize) {
        self.device.reset_queue(index, &self.port);
        if let Some(queue) = self.queues.get_mut(index) {
            queue.reset();
        }
        if let Some(onlooker) = self.port.onlooker() {
            onlooker.reset(&self.port, Some(index));
        }
    }

    /// A driver that does not wait for a reset to finish finds it finished by its next write.
    fn finish_resets(&mut self) {
        if self.common.reset_at.is_some() {
            self.reset_device();
        }
        for index in 0..self.queues.len() {
            if self.queues[index].reset_at.is_some() {
                self.reset_queue(index);
            }
        }
    }

    fn common_write(&mut self, at: Time, offset: u64, size: u8, value: u64) {
        if (offset, size, value) == (field::DEVICE_STATUS, 1, 0) {
            if self.common.status == 0 {
                self.reset_device();
            } else if self.common.reset_at.is_none() {
                self.common.reset_at = Some(at + self.timing.notify);
            }
            return;
        }
        self.finish_resets();
        let offered = self.offered();
        let vectors = self.msix.vectors();
        let vector = if value < u64::from(vectors) { value as u16 } else { NO_VECTOR };
        let common = &mut self.common;
        match (offset, size) {
            (field::DEVICE_FEATURE_SELECT, 4) => common.device_feature_select = value as u32,
            (field::DRIVER_FEATURE_SELECT, 4) => common.driver_feature_select = value as u32,
            (field::DRIVER_FEATURE, 4) => common.set_driver_features(value as u32),
            (field::CONFIG_VECTOR, 2) => common.config_vector = vector,
            (field::QUEUE_SELECT, 2) => common.queue_select = value as u16,
            (field::DEVICE_STATUS, 1) => {
                if common.set_status(value as u8, offered) {
                    // Whatever the driver made available before it said it was ready.
                    for index in 0..self.queues.len() {
                        self.device.notify(index, at + self.timing.notify);
                    }
                }
            }
            _ => self.queue_write(at, offset, size, value, vector),
        }
    }

    fn queue_write(&mut self, at: Time, offset: u64, size: u8, value: u64, vector: u16) {
        let index = usize::from(self.common.queue_select);
        let Some(queue) = self.queues.get_mut(index) else { return };
        match (offset, size) {
            (field::QUEUE_VECTOR, 2) => queue.vector = vector,
            (field::QUEUE_RESET, 2) => {
                let offered = self.common.driver_features & feature::RING_RESET != 0;
                if value == 1 && offered && queue.enabled() {
                    queue.reset_at = Some(at + self.timing.notify);
                }
            }
            // An enabled queue keeps its registers until it is reset.
            _ if queue.enabled() => {}
            (field::QUEUE_SIZE, 2) => {
                queue.set_size(value as u16, self.common.driver_features);
            }
            (field::QUEUE_ENABLE, 2) => {
                let refused = value == 1 && !queue.enable(self.common.driver_features);
                if refused {
                    log::warn!(
                        "virtio device {:#06x}: queue {index} cannot be enabled",
                        self.port.requester().sid
                    );
                    self.needs_reset(at);
                } else if value == 1
                    && let Some(onlooker) = self.port.onlooker()
                {
                    onlooker.enabled(&self.port, index, queue.announcements());
                }
            }
            (field::QUEUE_DESC..field::QUEUE_RESET, _) => {
                let register = match offset & !7 {
                    field::QUEUE_DESC => &mut queue.areas.desc,
                    field::QUEUE_DRIVER => &mut queue.areas.driver,
                    field::QUEUE_DEVICE => &mut queue.areas.device,
                    _ => return,
                };
                match (offset & 7, size) {
                    (0, 8) => *register = value,
                    (0, 4) => *register = *register & !0xffff_ffff | value & 0xffff_ffff,
                    (4, 4) => *register = *register & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// The device stops until it is reset, and says so (virtio 1.3 §2.1.2).
    fn needs_reset(&mut self, now: Time) {
        self.common.status |= status::NEEDS_RESET;
        self.device.suspend(&self.port);
        if self.common.status & status::DRIVER_OK != 0 {
            self.common.isr |= ISR_CONFIG;
            self.msix.trigger(self.common.config_vector, now);
        }
    }

    fn register_read(&mut self, offset: u64, size: u8) -> u64 {
        match (offset & !(PAGE - 1), offset % PAGE) {
            (COMMON, at) => self.common.read(at, size, self.offered(), &self.queues),
            // Reading clears it.
            (ISR, 0) => u64::from(std::mem::take(&mut self.common.isr)),
            (DEVICE, at) => {
                let config = self.device.config();
                (0..u64::from(size.min(8))).fold(0, |value, i| {
                    let byte = config.get((at + i) as usize).copied().unwrap_or(0);
                    value | u64::from(byte) << (8 * i)
                })
            }
            _ => 0,
        }
    }

    fn register_write(&mut self, at: Time, offset: u64, size: u8, value: u64) {
        match (offset & !(PAGE - 1), offset % PAGE) {
            (COMMON, field) => self.common_write(at, field, size, value),
            (NOTIFY, doorbell) => {
                let index = (doorbell / u64::from(NOTIFY_MULTIPLIER)) as usize;
                let enabled = self.queues.get(index).is_some_and(Virtqueue::enabled);
                if enabled && self.common.running() {
                    self.device.notify(index, at + self.timing.notify);
                }
            }
            // No device here has configuration that a driver can write.
            _ => {}
        }
    }

    /// Target of the access that the PCI configuration access capability describes: BAR, offset, size.
    fn window_target(&self) -> Option<(usize, u64, u8)> {
        let bar = self.config.read(self.window_at + 4, 1) as usize;
        let offset = u64::from(self.config.read(self.window_at + 8, 4));
        let size = self.config.read(self.window_at + 12, 4);
        let limit = match bar {
            MSIX_BAR => Msix::WINDOW,
            REGISTER_BAR => REGISTER_BAR_SIZE,
            _ => return None,
        };
        let fits = matches!(size, 1 | 2 | 4) && offset % u64::from(size) == 0 && offset < limit;
        fits.then_some((bar, offset, size as u8))
    }

    /// When the next reset that the driver asked for happens: of the device (`None`) or of a queue.
    fn next_reset(&self) -> Option<(Time, Option<usize>)> {
        let queues = self.queues.iter().enumerate().filter_map(|(i, q)| Some((q.reset_at?, Some(i))));
        self.common.reset_at.map(|at| (at, None)).into_iter().chain(queues).min()
    }

    fn device_due(&self) -> Option<Time> {
        if self.running() { self.device.next_step() } else { None }
    }

    fn step_device(&mut self, now: Time) {
        let due = self.device_due();
        if let Some((at, which)) = self.next_reset()
            && due.is_none_or(|due| at <= due)
        {
            match which {
                None => self.reset_device(),
                Some(index) => self.reset_queue(index),
            }
            return;
        }
        if due.is_none() {
            return;
        }
        let mut fault = false;
        self.device.step(&mut Io {
            port: &self.port,
            queues: &mut self.queues,
            features: self.common.driver_features,
            timing: &self.timing,
            now,
            kind: self.device.device_id(),
            msix: &mut self.msix,
            isr: &mut self.common.isr,
            fault: &mut fault,
        });
        if fault {
            self.needs_reset(now);
        }
    }
}

/// Appends a virtio structure capability and returns its offset.
fn add_structure(config: &mut ConfigSpace, kind: u8, offset: u64, len: u32, extra: &[u8]) -> u8 {
    let mut body = vec![0; 14];
    body[0] = 16 + extra.len() as u8;
    body[1] = kind;
    body[2] = REGISTER_BAR as u8;
    body[6..10].copy_from_slice(&(offset as u32).to_le_bytes());
    body[10..14].copy_from_slice(&len.to_le_bytes());
    body.extend_from_slice(extra);
    let mut writable = vec![0; body.len()];
    if kind == CFG_PCI {
        writable[2] = 0xff;
        writable[6..14].fill(0xff);
    }
    config.add_capability(CAP_VENDOR, &body, &writable)
}

impl<D: VirtioDevice> PciFunction for VirtioPci<D> {
    fn config_read(&mut self, at: Time, offset: u16, size: u8) -> u32 {
        let data = self.window_at + 16;
        if (data..data + 4).contains(&offset) {
            return match self.window_target() {
                Some((bar, target, width)) => self.bar_read(at, bar, target, width) as u32,
                None => 0,
            };
        }
        match &self.ats {
            Some(ats) => ats.read(&self.config, &self.port, offset, size),
            None => self.config.read(offset, size),
        }
    }

    fn config_write(&mut self, at: Time, offset: u16, size: u8, value: u32) {
        let data = self.window_at + 16;
        if (data..data + 4).contains(&offset) {
            if let Some((bar, target, width)) = self.window_target() {
                self.bar_write(at, bar, target, width, u64::from(value) & size_mask(width));
            }
            return;
        }
        let control = self.config.read(self.msix_at + 2, 2);
        if self.config.write(offset, size, value).reset {
            self.reset(at);
            return;
        }
        let new_control = self.config.read(self.msix_at + 2, 2);
        if new_control != control {
            self.msix.set_control(new_control as u16, at);
        }
        let master = self.config.may_master();
        self.port.set_enabled(master);
        if !master {
            PciFunction::suspend(self);
        }
        if let Some(ats) = &self.ats {
            ats.written(&self.config, &self.port, offset, size, value);
        }
    }

    fn put_behind_link(&mut self) {
        self.config.put_behind_link();
    }

    fn suspend(&mut self) {
        self.device.suspend(&self.port);
        self.msix.suspend(&self.port);
    }

    fn window(&self, bar: usize) -> Option<(u64, u64)> {
        self.config.window(bar)
    }

    fn bar_read(&mut self, _at: Time, bar: usize, offset: u64, size: u8) -> u64 {
        match bar {
            MSIX_BAR => self.msix.read(offset, size),
            REGISTER_BAR => self.register_read(offset, size),
            _ => 0,
        }
    }

    fn bar_write(&mut self, at: Time, bar: usize, offset: u64, size: u8, value: u64) {
        match bar {
            MSIX_BAR => self.msix.write(offset, size, value, at),
            REGISTER_BAR => self.register_write(at, offset, size, value),
            _ => {}
        }
    }

    fn lanes(&self) -> usize {
        2 + usize::from(self.ats.is_some())
    }

    fn next_step(&self, lane: usize) -> Option<Time> {
        match lane {
            LANE_DEVICE => earliest(self.device_due(), self.next_reset().map(|(at, _)| at)),
            LANE_MSIX => self.msix.next_step(&self.port),
            LANE_ATC => self.port.atc_next_step(),
            _ => None,
        }
    }

    fn step(&mut self, lane: usize, now: Time) {
        match lane {
            LANE_DEVICE => self.step_device(now),
            LANE_MSIX => {
                self.msix.step(&self.port, now);
            }
            LANE_ATC => self.port.atc_step(now),
            _ => {}
        }
    }

    fn reset(&mut self, _now: Time) {
        self.reset_device();
        self.msix.reset(&self.port);
        self.config.reset();
        self.port.set_enabled(false);
        self.port.reset_ats();
    }

    fn port(&self) -> Option<&DmaPort> {
        Some(&self.port)
    }

    fn save(&self) -> FunctionState {
        FunctionState::Virtio(Box::new(VirtioState {
            config: self.config.clone(),
            msix: self.msix.clone(),
            stats: self.port.stats(),
            common: self.common.clone(),
            queues: self.queues.iter().map(Virtqueue::save).collect(),
            device: self.device.save(),
            bounce: self.port.bounce().map(Bounce::stats),
            ats: self.port.save_ats(),
        }))
    }

    fn restore(&mut self, state: FunctionState) -> Result<(), StateError> {
        let FunctionState::Virtio(state) = state else { return Err(StateError) };
        let fits = state.config.same_shape(&self.config)
            && state.msix.same_shape(&self.msix)
            && state.queues.len() == self.queues.len()
            && state.bounce.is_some() == self.port.bounce().is_some()
            && self.port.restore_ats(state.ats);
        if !fits {
            return Err(StateError);
        }
        for (queue, saved) in self.queues.iter_mut().zip(&state.queues) {
            queue.restore(saved)?;
        }
        self.device.restore(state.device)?;
        (self.config, self.msix, self.common) = (state.config, state.msix, state.common);
        self.port.restore_stats(&state.stats);
        if let (Some(bounce), Some(stats)) = (self.port.bounce(), &state.bounce) {
            bounce.restore_stats(stats);
        }
        self.port.set_enabled(self.config.may_master());
        Ok(())
    }

    fn device_mut(&mut self) -> &mut dyn Any {
        &mut self.device
    }
}
