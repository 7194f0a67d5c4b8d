//! What unit tests of this crate share: a small machine with page tables made by hand.

use guest_ram::GuestRam;

use crate::config::{Config, Features};
use crate::core::{Core, Ctx, Flow, Op};
use crate::exec;
use crate::platform::{At, BusFault, IrqLines, Platform, SysKey};
use crate::shared::Shared;
use crate::sys::{self, sctlr};

pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const RAM_SIZE: u64 = 0x80_0000;
/// The only device: it remembers what is written and answers with the address of what is read.
pub(crate) const DEVICE: u64 = 0x0900_0000;

#[derive(Default)]
pub(crate) struct Board {
    pub(crate) writes: Vec<(u64, u8, u64)>,
    pub(crate) reads: Vec<(u64, u8)>,
    pub(crate) lines: IrqLines,
    pub(crate) ppis: Vec<(u64, u32, bool)>,
}

impl Platform for Board {
    fn mmio_read(&mut self, _: At, pa: u64, size: u8) -> Result<u64, BusFault> {
        if !(DEVICE..DEVICE + 0x1000).contains(&pa) {
            return Err(BusFault);
        }
        self.reads.push((pa, size));
        Ok(pa.wrapping_mul(0x0101_0101_0101_0101))
    }
    fn mmio_write(&mut self, _: At, pa: u64, size: u8, value: u64) -> Result<(), BusFault> {
        if !(DEVICE..DEVICE + 0x1000).contains(&pa) {
            return Err(BusFault);
        }
        self.writes.push((pa, size, value));
        Ok(())
    }
    fn icc_read(&mut self, _: At, reg: SysKey) -> Option<u64> {
        (reg == SysKey::new(3, 0, 4, 6, 0)).then_some(0xf0)
    }
    fn icc_write(&mut self, _: At, reg: SysKey, _: u64) -> Option<()> {
        (reg == SysKey::new(3, 0, 4, 6, 0)).then_some(())
    }
    fn irq(&self, _: usize) -> IrqLines {
        self.lines
    }
    fn set_ppi(&mut self, at: At, intid: u32, level: bool) {
        self.ppis.push((at.now, intid, level));
    }
    fn take_yield(&mut self) -> bool {
        false
    }
}

/// One vCPU, RAM, a device, and where the next page table goes.
pub(crate) struct Rig {
    pub(crate) core: Core,
    pub(crate) shared: Shared,
    pub(crate) board: Board,
    next_table: u64,
}

/// Descriptor bits for [`Rig::map`].
pub(crate) mod attr {
    pub(crate) const AF: u64 = 1 << 10;
    pub(crate) const USER: u64 = 1 << 6;
    pub(crate) const READ_ONLY: u64 = 1 << 7;
    pub(crate) const NG: u64 = 1 << 11;
    pub(crate) const PXN: u64 = 1 << 53;
    pub(crate) const UXN: u64 = 1 << 54;
    pub(crate) const DEVICE: u64 = 1 << 2;
    pub(crate) const INNER: u64 = 3 << 8;
    /// Normal memory that EL1 may read and write.
    pub(crate) const KERNEL: u64 = AF | INNER | UXN;
}

impl Rig {
    pub(crate) fn new(features: Features) -> Self {
        let config = Config { features, ..Config::default() };
        let ram = GuestRam::new(RAM, RAM_SIZE).unwrap();
        let mut core = Core::new(0, &config);
        core.set_pc(RAM);
        let shared = Shared::new(ram, features, 1);
        Self { core, shared, board: Board::default(), next_table: RAM + 0x40_0000 }
    }

    /// With the MMU on, 48-bit halves, 4 KiB granule, 16-bit ASIDs and both table roots empty. MAIR: attribute 0 is Normal
    /// write-back, attribute 1 Device-nGnRE.
    pub(crate) fn with_mmu() -> Self {
        Self::with_mmu_and(Features::default())
    }

    pub(crate) fn with_mmu_and(features: Features) -> Self {
        let mut rig = Self::new(features);
        let (low, high) = (rig.table(), rig.table());
        rig.set("TTBR0_EL1", low);
        rig.set("TTBR1_EL1", high);
        rig.set("MAIR_EL1", 0x04ff);
        rig.set("TCR_EL1", 1 << 36 | 5 << 32 | 2 << 30 | 16 << 16 | 16);
        rig.set("SCTLR_EL1", sctlr::M | sctlr::C | sctlr::I);
        rig.set("VBAR_EL1", 0xffff_0000_0000_0000);
        rig
    }

    pub(crate) fn parts(&mut self) -> (&mut Core, Ctx<'_>) {
        (&mut self.core, Ctx::new(&mut self.board, &mut self.shared))
    }

    pub(crate) fn table(&mut self) -> u64 {
        self.next_table += 0x1000;
        self.next_table - 0x1000
    }

    pub(crate) fn read64(&self, pa: u64) -> u64 {
        let mut bytes = [0; 8];
        assert!(self.shared.ram.read(pa, &mut bytes));
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn write64(&mut self, pa: u64, value: u64) {
        assert!(self.shared.ram.write(pa, &value.to_le_bytes()));
    }

    /// Writes the descriptor of the 4 KiB-granule entry for `va` at `level`, making the tables on the way.
    pub(crate) fn describe(&mut self, root: u64, va: u64, level: u32, descriptor: u64) {
        let mut table = root & 0xffff_ffff_f000;
        for l in 0..=level {
            let slot = table + (va >> (39 - 9 * l) & 511) * 8;
            if l == level {
                self.write64(slot, descriptor);
                return;
            }
            let mut entry = self.read64(slot);
            if entry & 1 == 0 {
                entry = self.table() | 3;
                self.write64(slot, entry);
            }
            table = entry & 0xffff_ffff_f000;
        }
    }

    /// Maps the page at `va` to `pa`, in the half that `va` is in.
    pub(crate) fn map(&mut self, va: u64, pa: u64, attributes: u64) {
        let root = if va >> 55 & 1 != 0 { self.core.sys.ttbr1_el1 } else { self.core.sys.ttbr0_el1 };
        self.describe(root, va, 3, pa | attributes | 3);
    }

    /// Removes the page at `va`, leaving what is cached.
    pub(crate) fn unmap(&mut self, va: u64) {
        let root = if va >> 55 & 1 != 0 { self.core.sys.ttbr1_el1 } else { self.core.sys.ttbr0_el1 };
        self.describe(root, va, 3, 0);
    }

    fn key(name: &str) -> SysKey {
        sys::TABLE.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no register {name}")).key
    }

    /// Executes MSR `name`, X0 with `value`.
    pub(crate) fn set(&mut self, name: &str, value: u64) -> Flow {
        self.core.r[0] = value;
        let word = 0xd510_0000 | u32::from(Self::key(name).0 & 0x7fff) << 5;
        let (core, mut ctx) = self.parts();
        sys::msr(core, &Op::new(exec::undefined, word), &mut ctx)
    }

    /// Executes MRS X0, `name`.
    pub(crate) fn get(&mut self, name: &str) -> Result<u64, Flow> {
        self.get_key(Self::key(name))
    }

    pub(crate) fn get_key(&mut self, key: SysKey) -> Result<u64, Flow> {
        let word = 0xd530_0000 | u32::from(key.0 & 0x7fff) << 5;
        let (core, mut ctx) = self.parts();
        match sys::mrs(core, &Op::new(exec::undefined, word), &mut ctx) {
            Flow::Next => Ok(self.core.r[0]),
            flow => Err(flow),
        }
    }

    /// Executes SYS with X0 = `value`.
    pub(crate) fn system(&mut self, op1: u16, crn: u16, crm: u16, op2: u16, value: u64) -> Flow {
        self.core.r[0] = value;
        let word = 0xd508_0000 | u32::from(SysKey::new(0, op1, crn, crm, op2).0) << 5;
        let (core, mut ctx) = self.parts();
        sys::sys(core, &Op::new(exec::undefined, word), &mut ctx)
    }
}
