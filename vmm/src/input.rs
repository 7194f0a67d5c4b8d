//! Input from outside the machine, stamped with the virtual time at which it was given, recorded and given again.
//!
//! A recording is text: one JSON object a line, `{"at":NANOSECONDS,"keys":"HEX"}`, `{"at":NANOSECONDS,"frame":"HEX"}`,
//! `{"at":NANOSECONDS,"quit":true}`, for disks that another process serves `{"at":0,"disk":{…}}` and
//! `{"at":NANOSECONDS,"served":{…}}`, and for such a network that gives the guest its address `{"at":0,"mac":"HEX"}`, in the
//! order of time. With the same images, options and seed it gives the same run to the bit.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use devices::pci::Slot;
use serde::{Deserialize, Serialize};

use crate::options::RemoteDisk;

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for the UART.
    Keys(Vec<u8>),
    /// An Ethernet frame for the network device.
    Frame(Vec<u8>),
    /// The user left, and the run ended.
    Quit,
    /// There is a disk that another process serves. Comes before all else.
    Disk(RemoteDisk),
    /// The network device has this address. Comes before all else.
    Mac([u8; 6]),
    /// A process has done what a disk asked for.
    Served(Served),
}

/// An operation of a disk that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Served {
    /// The disk's PCI slot.
    pub slot: Slot,
    /// Names the operation.
    pub token: u64,
    /// What was read, in hexadecimal; nothing if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex")]
    pub data: Option<Vec<u8>>,
}

mod hex {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(data: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        data.as_deref().map(super::to_hex).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        let bytes =
            |text: String| super::from_hex(&text).ok_or_else(|| serde::de::Error::custom("not hexadecimal"));
        text.map(bytes).transpose()
    }
}

/// A line of a recording.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frame: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    quit: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk: Option<RemoteDisk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    served: Option<Served>,
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| {
            let value = |c: u8| char::from(c).to_digit(16);
            Some((value(pair[0])? << 4 | value(pair[1])?) as u8)
        })
        .collect()
}

/// Writes a recording as the run goes on.
#[derive(Debug)]
pub struct Recorder(BufWriter<File>);

impl Recorder {
    /// Makes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(BufWriter::new(file)))
    }

    /// Notes that `input` was given to the machine at virtual time `at`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note(&mut self, at: u64, input: &Input) -> Result<()> {
        let line = match input {
            Input::Keys(bytes) => Line { at, keys: Some(to_hex(bytes)), ..Line::default() },
            Input::Frame(bytes) => Line { at, frame: Some(to_hex(bytes)), ..Line::default() },
            Input::Quit => Line { at, quit: true, ..Line::default() },
            Input::Disk(disk) => Line { at, disk: Some(*disk), ..Line::default() },
            Input::Mac(mac) => Line { at, mac: Some(to_hex(mac)), ..Line::default() },
            Input::Served(served) => Line { at, served: Some(served.clone()), ..Line::default() },
        };
        serde_json::to_writer(&mut self.0, &line).context("cannot write the recording")?;
        writeln!(self.0).context("cannot write the recording")
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.0.flush().context("cannot write the recording")
    }
}

/// Recorded input that has not been given yet.
#[derive(Debug, Default)]
pub struct Player(VecDeque<(u64, Input)>);

impl Player {
    /// Reads a recording.
    ///
    /// # Errors
    /// When the file cannot be read or a line of it is not one of a recording; the message names the line.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut inputs = VecDeque::new();
        let mut last = 0;
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let place = || Place { path: path.into(), line: number + 1 }.to_string();
            let line = line.with_context(place)?;
            let line: Line = serde_json::from_str(&line).with_context(place)?;
            let Line { at: _, keys, frame, quit, disk, mac, served } = &line;
            let address = |mac: &String| from_hex(mac)?.try_into().ok().map(Input::Mac);
            let input = match (keys, frame, quit, disk, mac, served) {
                (Some(keys), None, false, None, None, None) => from_hex(keys).map(Input::Keys),
                (None, Some(frame), false, None, None, None) => from_hex(frame).map(Input::Frame),
                (None, None, true, None, None, None) => Some(Input::Quit),
                (None, None, false, Some(disk), None, None) => Some(Input::Disk(*disk)),
                (None, None, false, None, Some(mac), None) => address(mac),
                (None, None, false, None, None, Some(served)) => Some(Input::Served(served.clone())),
                _ => bail!("{}: not one of keys, frame, quit, disk, mac and served", place()),
            };
            let input = input.with_context(|| format!("{}: not hexadecimal", place()))?;
            if line.at < last {
                bail!("{}: earlier than the line before", place());
            }
            last = line.at;
            inputs.push_back((line.at, input));
        }
        Ok(Self(inputs))
    }

    /// The disks that other processes served.
    pub fn disks(&self) -> Vec<RemoteDisk> {
        let disk = |(_, input): &(u64, Input)| if let Input::Disk(disk) = input { Some(*disk) } else { None };
        self.0.iter().filter_map(disk).collect()
    }

    /// The network device's address, if it was not the usual one.
    pub fn mac(&self) -> Option<[u8; 6]> {
        self.0.iter().find_map(|(_, input)| if let Input::Mac(mac) = input { Some(*mac) } else { None })
    }

    /// When the next input is due.
    pub fn next_at(&self) -> Option<u64> {
        self.0.front().map(|(at, _)| *at)
    }

    /// The next input, if it is due at `now`.
    pub fn take(&mut self, now: u64) -> Option<Input> {
        let due = self.next_at().is_some_and(|at| at <= now);
        due.then(|| self.0.pop_front()).flatten().map(|(_, input)| input)
    }
}

struct Place {
    path: PathBuf,
    line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, line {}", self.path.display(), self.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_played() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("input");
        let mut recorder = Recorder::create(&path).unwrap();
        recorder.note(0, &Input::Mac([2, 0, 0, 0, 0, 1])).unwrap();
        recorder.note(5, &Input::Keys(b"a\xff".to_vec())).unwrap();
        recorder.note(9, &Input::Frame(vec![0; 60])).unwrap();
        recorder.note(11, &Input::Quit).unwrap();
        recorder.finish().unwrap();
        let mut player = Player::open(&path).unwrap();
        assert_eq!(player.mac(), Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(player.take(4), Some(Input::Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!(player.take(4), None);
        assert_eq!(player.take(5), Some(Input::Keys(b"a\xff".to_vec())));
        assert_eq!(player.take(5), None);
        assert_eq!(player.next_at(), Some(9));
        assert_eq!(player.take(10), Some(Input::Frame(vec![0; 60])));
        assert_eq!(player.take(11), Some(Input::Quit));
        assert_eq!(player.next_at(), None);
    }

    #[test]
    fn bad_lines_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("input");
        for bad in [
            "{\"at\":1}",
            "{\"at\":1,\"keys\":\"0g\"}",
            "{\"at\":1,\"mac\":\"02\"}",
            "nonsense",
            "{\"at\":1,\"keys\":\"\",\"x\":0}",
        ] {
            std::fs::write(&path, format!("{{\"at\":0,\"keys\":\"00\"}}\n{bad}\n")).unwrap();
            let error = format!("{:#}", Player::open(&path).unwrap_err());
            assert!(error.contains("line 2"), "{bad}: {error}");
        }
        std::fs::write(&path, "{\"at\":3,\"keys\":\"00\"}\n{\"at\":2,\"keys\":\"00\"}\n").unwrap();
        assert!(Player::open(&path).unwrap_err().to_string().contains("earlier"));
    }
}
