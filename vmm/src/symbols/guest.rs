//! A running guest's memory by virtual addresses, for who looks on.

use aarch64::core::Core;
use guest_ram::GuestRam;

const OFFSET: u64 = 0xfff;

/// Reads by the tables that a vCPU has now.
pub(super) struct Reader<'a> {
    core: &'a Core,
    ram: &'a GuestRam,
    /// A page whose place is known: virtual and physical address.
    page: Option<(u64, u64)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(core: &'a Core, ram: &'a GuestRam) -> Self {
        Self { core, ram, page: None }
    }

    fn physical(&mut self, va: u64) -> Option<u64> {
        match self.page {
            Some((page, pa)) if page == va & !OFFSET => Some(pa | va & OFFSET),
            _ => {
                let pa = self.core.physical(self.ram, va)?;
                self.page = Some((va & !OFFSET, pa & !OFFSET));
                Some(pa)
            }
        }
    }

    pub(super) fn byte(&mut self, va: u64) -> Option<u8> {
        let mut byte = [0];
        let pa = self.physical(va)?;
        self.ram.read(pa, &mut byte).then_some(byte[0])
    }

    /// An aligned word.
    pub(super) fn word(&mut self, va: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        let pa = self.physical(va & !7)?;
        self.ram.read(pa, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }

    /// A string of at most `most` bytes.
    pub(super) fn text(&mut self, va: u64, most: usize) -> String {
        let bytes = (0..most as u64).map_while(|n| self.byte(va.wrapping_add(n)).filter(|&byte| byte != 0));
        bytes.map(|byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' }).collect()
    }

    /// What is in physical memory from where `va` is, at most `most` bytes of it.
    pub(super) fn behind(&mut self, va: u64, most: u64) -> Vec<u8> {
        let Some(pa) = self.physical(va) else { return Vec::new() };
        let end = self.ram.base() + self.ram.size();
        let mut bytes = vec![0; end.saturating_sub(pa).min(most) as usize];
        if !self.ram.read(pa, &mut bytes) {
            bytes.clear();
        }
        bytes
    }
}
