//! The least of a gdb: the remote serial protocol, packet by packet.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};

use super::smmulab;

/// A replay that waits for gdb.
pub(crate) struct Server(Child);

impl Server {
    /// Starts it, and connects to it.
    pub(crate) fn start(record: &Path, args: &[&str]) -> (Self, Gdb) {
        let mut server = smmulab()
            .arg("replay")
            .arg(record)
            .args(["--gdb", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(server.stderr.take().unwrap()).read_line(&mut line).unwrap();
        (Self(server), Gdb::connect(line.trim().rsplit(' ').next().unwrap()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A connection to a stub.
pub(crate) struct Gdb(BufReader<TcpStream>);

impl Gdb {
    pub(crate) fn connect(address: &str) -> Self {
        Self(BufReader::new(TcpStream::connect(address).unwrap()))
    }

    /// Sends a packet and gives the answer's text.
    pub(crate) fn ask(&mut self, packet: &str) -> String {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        write!(self.0.get_mut(), "${packet}#{sum:02x}").unwrap();
        self.answer()
    }

    /// Gives a `monitor` command and gives what it prints.
    pub(crate) fn monitor(&mut self, command: &str) -> String {
        let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
        let mut answer = self.ask(&format!("qRcmd,{hex}"));
        let mut text = Vec::new();
        while let Some(hex) = answer.strip_prefix('O').filter(|rest| *rest != "K") {
            let byte = |i: usize| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap();
            text.extend((0..hex.len() / 2).map(byte));
            answer = self.answer();
        }
        String::from_utf8(text).unwrap()
    }

    fn answer(&mut self) -> String {
        let mut answer = Vec::new();
        self.0.read_until(b'$', &mut answer).unwrap();
        answer.clear();
        self.0.read_until(b'#', &mut answer).unwrap();
        self.0.read_exact(&mut [0; 2]).unwrap();
        self.0.get_mut().write_all(b"+").unwrap();
        answer.pop();
        // `x*c`: x again, as often as c says.
        let mut text = String::new();
        let mut bytes = answer.into_iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b'*' => {
                    let (last, times) = (text.chars().last().unwrap(), bytes.next().unwrap() - 29);
                    text.extend(std::iter::repeat_n(last, times.into()));
                }
                byte => text.push(byte.into()),
            }
        }
        text
    }

    /// The program counter of the vCPU that stopped last.
    pub(crate) fn pc(&mut self) -> u64 {
        let registers = self.ask("g");
        // X0 to X30 and SP are before it, 16 digits each.
        let digits = &registers[32 * 16..33 * 16];
        let bytes: Vec<u8> =
            (0..8).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap()).collect();
        u64::from_le_bytes(bytes.try_into().unwrap())
    }
}
