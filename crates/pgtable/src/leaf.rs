//! The result of a walk, and what it permits (DDI 0487, D8.4).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::descriptor as d;
use crate::fault::FaultKind;
use crate::granule::Granule;
use crate::walk::Rules;

/// What the table descriptors on the way imposed: each attribute is the OR over all levels. All clear with HPD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableAttrs(u8);

impl TableAttrs {
    /// The attributes in one table descriptor: bits 63:59.
    #[inline]
    pub(crate) const fn of(descriptor: u64) -> Self {
        Self((descriptor >> 59) as u8)
    }

    /// No table imposes anything.
    pub(crate) const NONE: Self = Self(0);

    /// As bits 4:0.
    #[inline]
    pub(crate) const fn bits(self) -> u64 {
        self.0 as u64
    }

    #[inline]
    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// NSTable alone, which HPD does not turn off.
    #[inline]
    pub(crate) const fn only_ns(self) -> Self {
        Self(self.0 & 0x10)
    }

    /// PXNTable: no privileged execution.
    #[inline]
    pub const fn pxn(self) -> bool {
        self.0 & 1 != 0
    }

    /// UXNTable (XNTable): no unprivileged execution, or none at all in a regime of one privilege level.
    #[inline]
    pub const fn xn(self) -> bool {
        self.0 & 2 != 0
    }

    /// APTable\[0\]: no unprivileged access.
    #[inline]
    pub const fn no_user(self) -> bool {
        self.0 & 4 != 0
    }

    /// APTable\[1\]: no write access.
    #[inline]
    pub const fn read_only(self) -> bool {
        self.0 & 8 != 0
    }

    /// NSTable.
    #[inline]
    pub const fn ns(self) -> bool {
        self.0 & 16 != 0
    }
}

bitflags! {
    /// What a leaf permits to each privilege level.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Permissions: u8 {
        /// Privileged data read.
        const PRIV_READ = 1;
        /// Privileged data write.
        const PRIV_WRITE = 2;
        /// Privileged instruction fetch.
        const PRIV_EXEC = 4;
        /// Unprivileged data read.
        const USER_READ = 8;
        /// Unprivileged data write.
        const USER_WRITE = 16;
        /// Unprivileged instruction fetch.
        const USER_EXEC = 32;
    }
}

impl Permissions {
    /// Each of them or not: privileged read, write and execution, then unprivileged.
    #[inline]
    const fn of(each: [bool; 6]) -> Self {
        let [pr, pw, px, ur, uw, ux] = each;
        Self::from_bits_truncate(
            pr as u8
                | (pw as u8) << 1
                | (px as u8) << 2
                | (ur as u8) << 3
                | (uw as u8) << 4
                | (ux as u8) << 5,
        )
    }

    /// Whether `access` is permitted.
    #[inline]
    pub const fn allow(self, access: &Access) -> bool {
        let kind = if access.write {
            2
        } else if access.instruction {
            4
        } else {
            1
        };
        self.bits() & (kind << (if access.privileged { 0 } else { 3 })) != 0
    }
}

/// One access to check. A read-modify-write is two: the read first, then the write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// A write; a write is never an instruction access.
    pub write: bool,
    /// An instruction fetch (SMMU: InD = Instruction).
    pub instruction: bool,
    /// From EL1 or higher (SMMU: PnU = Privileged).
    pub privileged: bool,
}

/// Controls of a translation regime that change what a leaf permits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controls {
    /// SCTLR_ELx.WXN, CD.WXN: writable is not executable.
    pub wxn: bool,
    /// PSTATE.PAN, CD.PAN: no privileged data access where unprivileged access is possible. Clear it for accesses that
    /// PAN does not concern.
    pub pan: bool,
    /// SCTLR_ELx.EPAN, CD.EPAN: PAN covers what is executable by unprivileged code, too.
    pub epan: bool,
    /// FEAT_XNX (SMMU: IDR3.XNX): stage 2 XN has two bits.
    pub xnx: bool,
}

/// A block or page that a walk ended in. Holds the raw descriptor; methods give the effective attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// Output address of the exact input address.
    pub pa: u64,
    /// Size in bytes of the block or page.
    pub size: u64,
    /// The descriptor as fetched.
    pub descriptor: u64,
    /// Address of the descriptor, in the address space of the walk's fetches.
    pub at: u64,
    /// Lookup level of the descriptor.
    pub level: i8,
    /// The Contiguous bit is set and has a meaning here. See [`Leaf::span`].
    pub contiguous: bool,
    /// What the tables on the way imposed (stage 1 only).
    pub table: TableAttrs,
    pub(crate) rules: Rules,
}

impl Leaf {
    #[inline]
    const fn bit(&self, bit: u64) -> bool {
        self.descriptor & bit != 0
    }

    /// Size in bytes of the aligned region that a TLB may hold as one entry: the contiguous span if the Contiguous
    /// bit is set, else [`Leaf::size`].
    #[inline]
    pub const fn span(&self) -> u64 {
        match self.rules.granule.contiguous_bits(self.level) {
            Some(bits) if self.contiguous => self.size << bits,
            _ => self.size,
        }
    }

    /// Whether this is the result of a stage 2 walk.
    #[inline]
    pub const fn is_stage2(&self) -> bool {
        self.rules.stage2
    }

    /// The granule of the walk's tables.
    #[inline]
    pub const fn granule(&self) -> Granule {
        self.rules.granule
    }

    /// Stage 1 AttrIndx: which field of MAIR has the memory type.
    #[inline]
    pub const fn attr_index(&self) -> u8 {
        (self.descriptor >> 2 & 7) as u8
    }

    /// Stage 2 MemAttr\[3:0\].
    #[inline]
    pub const fn mem_attr(&self) -> u8 {
        (self.descriptor >> 2 & 15) as u8
    }

    /// Shareability: 0 non-shareable, 2 outer, 3 inner. From the descriptor, or from the configuration's `sh` where
    /// descriptors keep address bits in its place.
    #[inline]
    pub const fn shareability(&self) -> u8 {
        if self.rules.pa52 && !matches!(self.rules.granule, Granule::G64K) {
            self.rules.sh & 3
        } else {
            (self.descriptor >> 8 & 3) as u8
        }
    }

    /// Stage 1 AP\[2:1\] after APTable: bit 1 read-only, bit 0 unprivileged access. A writable-clean leaf (DBM with
    /// hardware dirty state) counts as writable. In a regime of one privilege level only bit 1 has a meaning.
    #[inline]
    pub const fn ap(&self) -> u8 {
        let read_only = self.bit(d::AP_READ_ONLY) && !self.dbm() || self.table.read_only();
        let user = self.bit(d::AP_USER) && !self.table.no_user();
        (read_only as u8) << 1 | user as u8
    }

    /// Stage 2 S2AP: bit 0 readable, bit 1 writable (a writable-clean leaf counts as writable).
    #[inline]
    pub const fn s2ap(&self) -> u8 {
        (self.descriptor >> 6 & 3) as u8 | (self.dbm() as u8) << 1
    }

    /// Stage 1 UXN (XN in a regime of one privilege level) after the tables' UXNTable; stage 2: XN\[1\].
    #[inline]
    pub const fn xn(&self) -> bool {
        self.bit(d::XN) || self.table.xn()
    }

    /// Stage 1 PXN after the tables' PXNTable; stage 2: XN\[0\].
    #[inline]
    pub const fn pxn(&self) -> bool {
        self.bit(d::PXN) || self.table.pxn()
    }

    /// Stage 1 nG: the translation belongs to the current ASID. Never set in a regime of one privilege level.
    #[inline]
    pub const fn ng(&self) -> bool {
        self.bit(d::NG) && !self.rules.single && !self.rules.stage2
    }

    /// Stage 1 NS, forced to one by an NSTable on the way.
    #[inline]
    pub const fn ns(&self) -> bool {
        self.bit(d::NS) || self.table.ns()
    }

    /// The Access flag as fetched.
    #[inline]
    pub const fn af(&self) -> bool {
        self.bit(d::AF)
    }

    /// The Dirty Bit Modifier, if hardware management of dirty state is on; otherwise the bit has no effect.
    #[inline]
    pub const fn dbm(&self) -> bool {
        self.rules.hd && self.bit(d::DBM)
    }

    /// Hardware must set the Access flag in the descriptor before the translation is used (HTTU).
    #[inline]
    pub const fn needs_af(&self) -> bool {
        self.rules.ha && !self.af()
    }

    /// Hardware must mark the descriptor dirty before a write uses the translation (HTTU): clear AP\[2\] at stage 1,
    /// set S2AP\[1\] at stage 2.
    #[inline]
    pub const fn needs_dirty(&self) -> bool {
        self.dbm() && if self.rules.stage2 { !self.bit(d::S2AP_WRITE) } else { self.bit(d::AP_READ_ONLY) }
    }

    /// The descriptor that hardware writes back for an access: with the Access flag and, for a write that needs it, as
    /// dirty. Equal to [`Leaf::descriptor`] if nothing is to be done.
    #[inline]
    pub const fn updated(&self, write: bool) -> u64 {
        let mut descriptor = self.descriptor;
        if self.needs_af() {
            descriptor |= d::AF;
        }
        if write && self.needs_dirty() {
            descriptor ^= d::AP_READ_ONLY;
        }
        descriptor
    }

    /// What the leaf permits under `controls`.
    #[inline]
    pub fn permissions(&self, controls: &Controls) -> Permissions {
        if self.rules.stage2 {
            self.stage2_permissions(controls)
        } else if self.rules.single {
            self.single_permissions(controls)
        } else {
            self.stage1_permissions(controls)
        }
    }

    /// A regime with EL0, such as EL1&0.
    #[inline]
    fn stage1_permissions(&self, controls: &Controls) -> Permissions {
        let (write, user) = (self.ap() & 2 == 0, self.ap() & 1 != 0);
        // Privileged code never executes what unprivileged code can write, whatever PXN and WXN say.
        let priv_exec = !(self.pxn() | user & write | controls.wxn & write);
        let user_exec = !(self.xn() | controls.wxn & user & write);
        // EPAN looks at UXN itself, before WXN.
        let hidden = controls.pan & (user | controls.epan & !self.xn());
        Permissions::of([!hidden, !hidden & write, priv_exec, user, user & write, user_exec])
    }

    /// One privilege level: whatever it may do, it may do as either.
    #[inline]
    fn single_permissions(&self, controls: &Controls) -> Permissions {
        let write = self.ap() & 2 == 0;
        let mut p = Permissions::PRIV_READ | Permissions::USER_READ;
        p.set(Permissions::PRIV_WRITE | Permissions::USER_WRITE, write);
        p.set(Permissions::PRIV_EXEC | Permissions::USER_EXEC, !(self.xn() || controls.wxn && write));
        p
    }

    #[inline]
    fn stage2_permissions(&self, controls: &Controls) -> Permissions {
        // XN[1:0]: 0b00 all, 0b01 unprivileged only, 0b10 nobody, 0b11 privileged only.
        let privileged = self.xn() == (controls.xnx && self.pxn());
        let data = self.s2ap();
        let exec = u8::from(privileged) << 2 | u8::from(!self.xn()) << 5;
        Permissions::from_bits_truncate(data | data << 3 | exec)
    }

    /// Checks one access. The fault, if any, is a Permission fault at [`Leaf::level`].
    #[inline]
    pub fn check(&self, access: &Access, controls: &Controls) -> Result<(), FaultKind> {
        if self.permissions(controls).allow(access) { Ok(()) } else { Err(FaultKind::Permission) }
    }
}
