//! Event records: 32-byte entries of the event queue (section 7.3).

use serde::{Deserialize, Serialize};

use crate::ats::AtsRequest;

/// Size of an event record, log2 of bytes.
pub const EVENT_SHIFT: u32 = 5;

/// Event numbers (section 7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(u8)]
#[allow(missing_docs)]
pub enum EventCode {
    FUut = 0x01,
    CBadStreamid = 0x02,
    FSteFetch = 0x03,
    CBadSte = 0x04,
    FBadAtsTreq = 0x05,
    FStreamDisabled = 0x06,
    FTranslForbidden = 0x07,
    CBadSubstreamid = 0x08,
    FCdFetch = 0x09,
    CBadCd = 0x0a,
    FWalkEabt = 0x0b,
    FTranslation = 0x10,
    FAddrSize = 0x11,
    FAccess = 0x12,
    FPermission = 0x13,
    FTlbConflict = 0x20,
    FCfgConflict = 0x21,
    EPageRequest = 0x24,
    FVmsFetch = 0x25,
}

/// CLASS: the class of the operation that faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Class {
    /// Fetch of a CD.
    Cd = 0,
    /// Fetch of a stage-1 translation table descriptor.
    Ttd = 1,
    /// The input address of the transaction.
    Input = 2,
}

/// The transaction's properties that most records carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// InputAddr: as the transaction gave it, all 64 bits.
    pub address: u64,
    /// RnW: 1 for a read.
    pub read: bool,
    /// InD: 1 for an instruction fetch.
    pub instruction: bool,
    /// PnU: 1 for a privileged access.
    pub privileged: bool,
}

/// Where a translation went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The faulting operation.
    pub class: Class,
    /// S2: at stage 2.
    pub s2: bool,
    /// IPA, page-aligned; meaningful at stage 2.
    pub ipa: u64,
    /// TTRnW of F_PERMISSION: with CLASS=TT, whether the descriptor was read, not updated.
    pub tt_read: bool,
}

/// What a device announces: E_PAGE_REQUEST (section 7.3.19).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageHint {
    /// First address.
    pub address: u64,
    /// Pages of 4 KiB.
    pub span: u8,
    /// Privileged read, write, execute; unprivileged read, write, execute.
    pub rights: [bool; 6],
}

/// What goes with each kind of event, beside the StreamID and SubstreamID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// An unsupported upstream transaction.
    UnsupportedUpstream(Access),
    /// StreamID out of range.
    BadStreamId,
    /// External abort on the fetch of an STE or L1STD at this address.
    SteFetch(u64),
    /// STE invalid.
    BadSte,
    /// A Translation Request where ATS is off.
    BadAtsRequest(AtsRequest),
    /// The transaction's kind is disabled for the stream.
    StreamDisabled,
    /// A Translated transaction where they are not allowed.
    TranslationForbidden(Access),
    /// SubstreamID out of range.
    BadSubstreamId,
    /// External abort on the fetch of a CD or L1CD at this address.
    CdFetch(u64),
    /// CD invalid.
    BadCd,
    /// External abort on the fetch of a descriptor at this address.
    WalkExternalAbort(Access, Place, u64),
    /// No translation.
    Translation(Access, Place),
    /// Output or table address out of range.
    AddressSize(Access, Place),
    /// Access flag is 0.
    AccessFlag(Access, Place),
    /// Not permitted.
    Permission(Access, Place),
    /// Several TLB entries that do not agree.
    TlbConflict(Access, Place),
    /// A device will soon use these pages.
    PageHint(PageHint),
}

impl EventKind {
    /// The number of such an event.
    #[must_use]
    pub fn code(&self) -> EventCode {
        match self {
            EventKind::UnsupportedUpstream(_) => EventCode::FUut,
            EventKind::BadStreamId => EventCode::CBadStreamid,
            EventKind::SteFetch(_) => EventCode::FSteFetch,
            EventKind::BadSte => EventCode::CBadSte,
            EventKind::BadAtsRequest(_) => EventCode::FBadAtsTreq,
            EventKind::TranslationForbidden(_) => EventCode::FTranslForbidden,
            EventKind::PageHint(_) => EventCode::EPageRequest,
            EventKind::StreamDisabled => EventCode::FStreamDisabled,
            EventKind::BadSubstreamId => EventCode::CBadSubstreamid,
            EventKind::CdFetch(_) => EventCode::FCdFetch,
            EventKind::BadCd => EventCode::CBadCd,
            EventKind::WalkExternalAbort(..) => EventCode::FWalkEabt,
            EventKind::Translation(..) => EventCode::FTranslation,
            EventKind::AddressSize(..) => EventCode::FAddrSize,
            EventKind::AccessFlag(..) => EventCode::FAccess,
            EventKind::Permission(..) => EventCode::FPermission,
            EventKind::TlbConflict(..) => EventCode::FTlbConflict,
        }
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// StreamID.
    pub sid: u32,
    /// SubstreamID, with SSV=1.
    pub ssid: Option<u32>,
    /// The stall tag, with Stall=1, if the transaction waits for a CMD_RESUME.
    pub stall: Option<u16>,
    /// What happened.
    pub kind: EventKind,
}

impl Event {
    /// Its number.
    #[must_use]
    pub fn code(&self) -> EventCode {
        self.kind.code()
    }

    /// Whether one record may stand for both: neither is of a stall, and they are the same but for the offset of the
    /// address in its page (section 7.3.1 and those of the events).
    #[must_use]
    pub fn merges_with(&self, other: &Event) -> bool {
        let page = |event: &Event| {
            let [a, b, address, c] = event.record();
            [a, b, address & !0xfff, c]
        };
        self.stall.is_none() && other.stall.is_none() && page(self) == page(other)
    }

    /// The record as it lies in memory.
    #[must_use]
    pub fn record(&self) -> [u64; 4] {
        let mut r = [0u64; 4];
        r[0] = self.code() as u64 | u64::from(self.sid) << 32;
        match (self.kind, self.ssid) {
            // This record has no SubstreamID at all; that one always has, so it needs no SSV.
            (EventKind::StreamDisabled | EventKind::TranslationForbidden(_), _) => {}
            (EventKind::BadSubstreamId, ssid) => r[0] |= u64::from(ssid.unwrap_or(0) & 0xf_ffff) << 12,
            (_, Some(ssid)) => r[0] |= 1 << 11 | u64::from(ssid & 0xf_ffff) << 12,
            (_, None) => {}
        }
        if let Some(tag) = self.stall {
            r[1] |= u64::from(tag) | 1 << 31;
        }
        let access = |r: &mut [u64; 4], a: &Access| {
            r[1] |= u64::from(a.privileged) << 33 | u64::from(a.instruction) << 34 | u64::from(a.read) << 35;
            r[2] = a.address;
        };
        let place = |r: &mut [u64; 4], p: &Place| {
            r[1] |= u64::from(p.s2) << 39 | (p.class as u64) << 40;
            if p.s2 {
                r[3] = super::keep(p.ipa, 51, 12);
            }
        };
        match &self.kind {
            EventKind::BadStreamId
            | EventKind::BadSte
            | EventKind::StreamDisabled
            | EventKind::BadSubstreamId
            | EventKind::BadCd => {}
            EventKind::SteFetch(address) | EventKind::CdFetch(address) => r[3] = super::keep(*address, 51, 3),
            EventKind::UnsupportedUpstream(a) => access(&mut r, a),
            EventKind::BadAtsRequest(request) => {
                // R is always asked for; the span is one translation unit.
                let rights = [true, !request.no_write, request.execute, request.privileged];
                r[1] |= flags(39, &rights) | 1 << 44;
                r[2] = super::keep(request.address, 63, 12);
            }
            EventKind::TranslationForbidden(a) => {
                r[1] |= u64::from(a.read) << 35;
                r[2] = a.address;
            }
            EventKind::PageHint(hint) => {
                r[1] |= flags(39, &hint.rights) | u64::from(hint.span) << 44;
                r[2] = super::keep(hint.address, 63, 12);
            }
            EventKind::WalkExternalAbort(a, p, address) => {
                access(&mut r, a);
                place(&mut r, p);
                r[3] = super::keep(*address, 51, 3);
            }
            EventKind::Translation(a, p) | EventKind::AddressSize(a, p) | EventKind::AccessFlag(a, p) => {
                access(&mut r, a);
                place(&mut r, p);
            }
            // No CLASS; Reason is 0.
            EventKind::TlbConflict(a, p) => {
                access(&mut r, a);
                place(&mut r, p);
                r[1] &= !(3 << 40);
            }
            EventKind::Permission(a, p) => {
                access(&mut r, a);
                place(&mut r, p);
                if p.class == Class::Ttd {
                    r[1] |= u64::from(p.tt_read) << 44;
                }
            }
        }
        r
    }
}

/// Bits from `first` downwards.
fn flags(first: u32, flags: &[bool]) -> u64 {
    flags.iter().zip(0..).fold(0, |bits, (&flag, n)| bits | u64::from(flag) << (first - n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_translation_fault_record() {
        let access =
            Access { address: 0xffff_0000_1234_5678, read: true, instruction: false, privileged: true };
        let place = Place { class: Class::Input, s2: false, ipa: 0, tt_read: false };
        let event = Event {
            sid: 0x0102_0304,
            ssid: Some(5),
            stall: None,
            kind: EventKind::Translation(access, place),
        };
        assert_eq!(event.record(), [0x0102_0304_0000_5810, 0x0000_020a_0000_0000, 0xffff_0000_1234_5678, 0]);
    }

    #[test]
    fn a_stage_2_fault_on_a_descriptor_fetch() {
        let access = Access { address: 0x1000, read: false, instruction: false, privileged: false };
        let place = Place { class: Class::Ttd, s2: true, ipa: 0xabcd_e678, tt_read: true };
        let event = Event { sid: 1, ssid: None, stall: Some(9), kind: EventKind::Permission(access, place) };
        assert_eq!(event.record(), [0x0000_0001_0000_0013, 0x0000_1180_8000_0009, 0x1000, 0xabcd_e000]);
    }
}
