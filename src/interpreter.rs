//! The program that the kernel starts to run a file: a script's interpreter or a binary's loader.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// An interpreter that a program needs but that cannot be executed.
#[derive(Debug)]
pub(crate) struct Broken {
    /// The interpreter, as the file names it.
    interpreter: PathBuf,
    /// The kernel's error.
    why: Errno,
}

impl Broken {
    /// Tells a missing interpreter from one that is there but cannot be executed.
    pub(crate) fn is_missing(&self) -> bool {
        self.why == Errno::NOENT
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.interpreter.to_string_lossy();
        match (name.strip_suffix('\r'), self.why) {
            (Some(name), Errno::NOENT) => write!(
                f,
                "its first line, which names the interpreter {name}, ends with a carriage return \
                 (CRLF); give the script Unix line endings"
            ),
            (_, Errno::NOENT) => write!(f, "its interpreter {name} is missing"),
            (_, why) => {
                let why = std::io::Error::from(why);
                write!(f, "its interpreter {name} cannot be executed: {why}")
            }
        }
    }
}

/// Returns the interpreter that keeps the kernel from executing `program`.
///
/// The program's own file must be executable. An interpreter may be a script, too, and so need
/// another one.
pub(crate) fn broken(program: &Path) -> Option<Broken> {
    first_broken(program, of)
}

/// Returns the same as [`broken`] if `program` is a script, and none for a binary.
///
/// For a script, the kernel uses nothing but the first line. A binary for another machine may run
/// although its loader is missing: the system may have a program registered for it (binfmt_misc).
pub(crate) fn broken_of_script(program: &Path) -> Option<Broken> {
    first_broken(program, |file| of_script(&start_of(&File::open(file).ok()?)?))
}

fn first_broken(program: &Path, of: impl Fn(&Path) -> Option<PathBuf>) -> Option<Broken> {
    /// More interpreters of interpreters than the kernel follows (`exec_binprm`).
    const DEPTH: usize = 6;
    let chain = std::iter::successors(of(program), |interpreter| of(interpreter));
    chain.take(DEPTH).find_map(|interpreter| {
        let why = cannot_execute(&interpreter)?;
        Some(Broken { interpreter, why })
    })
}

fn cannot_execute(interpreter: &Path) -> Option<Errno> {
    use rustix::fs::{Access, FileType, access, stat};
    match stat(interpreter) {
        Err(why) => Some(why),
        Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile => {
            Some(Errno::ACCESS)
        }
        Ok(_) => access(interpreter, Access::EXEC_OK).err(),
    }
}

/// Returns the interpreter that a script's first line or an ELF file's header names (execve(2)).
///
/// Returns `None` if it names none, or if the file cannot be read.
fn of(program: &Path) -> Option<PathBuf> {
    let file = File::open(program).ok()?;
    let start = start_of(&file)?;
    of_script(&start).or_else(|| {
        let name = loader(&file, &start).filter(|name| !name.is_empty())?;
        Some(OsString::from_vec(name).into())
    })
}

/// Returns whether a program is a script with an interpreter of its own.
pub(crate) fn is_script(program: &Path) -> bool {
    let start = File::open(program).ok().and_then(|file| start_of(&file));
    start.is_some_and(|start| of_script(&start).is_some())
}

/// Reads as much of a file as the kernel does (BINPRM_BUF_SIZE), padded with zeros.
fn start_of(file: &File) -> Option<[u8; 256]> {
    let mut start = Vec::new();
    file.take(256).read_to_end(&mut start).ok()?;
    start.resize(256, 0);
    start.try_into().ok()
}

/// Returns the interpreter of a script, as load_script() in the kernel's fs/binfmt_script.c reads it.
///
/// A name that may continue beyond what the kernel reads does not count.
fn of_script(start: &[u8]) -> Option<PathBuf> {
    let line = start.strip_prefix(b"#!")?;
    let line = line.split_inclusive(|&c| c == b'\n').next()?;
    let is_blank = |c: u8| c == b' ' || c == b'\t';
    let name = &line[line.iter().position(|&c| !is_blank(c))?..];
    let end = name.iter().position(|&c| is_blank(c) || c == b'\n' || c == 0)?;
    (end > 0).then(|| OsStr::from_bytes(&name[..end]).into())
}

/// Returns what the program header PT_INTERP names (elf(5)), for any machine.
fn loader(file: &File, header: &[u8]) -> Option<Vec<u8>> {
    const PT_INTERP: u64 = 3;
    const PATH_MAX: u64 = 4096;
    let (class, order) = match header.strip_prefix(b"\x7fELF")? {
        [class, order, ..] => (*class, *order),
        _ => return None,
    };
    let number = |bytes: &[u8], at: usize, size: usize| -> Option<u64> {
        let digits = bytes.get(at..at + size)?.iter();
        let add = |sum: u64, &digit: &u8| sum << 8 | u64::from(digit);
        match order {
            1 => Some(digits.rev().fold(0, add)),
            2 => Some(digits.fold(0, add)),
            _ => None,
        }
    };
    // The offsets of e_phoff, e_phentsize, p_offset and p_filesz, and the size of an address.
    let (table, entry_size, offset, length, word) = match class {
        1 => (28, 42, 4, 16, 4),
        2 => (32, 54, 8, 32, 8),
        _ => return None,
    };
    let (table, size) = (number(header, table, word)?, number(header, entry_size, 2)?);
    for n in 0..number(header, entry_size + 2, 2)? {
        let mut entry = [0; 40];
        file.read_at(&mut entry, table.checked_add(n * size)?).ok()?;
        if number(&entry, 0, 4)? == PT_INTERP {
            let mut path = vec![0; number(&entry, length, word)?.min(PATH_MAX) as usize];
            file.read_exact_at(&mut path, number(&entry, offset, word)?).ok()?;
            path.truncate(path.iter().position(|&c| c == 0).unwrap_or(path.len()));
            return Some(path);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_text(text: &[u8]) -> Option<PathBuf> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, text).unwrap();
        of(&path)
    }

    #[test]
    fn the_interpreter_of_a_script_is_the_one_the_kernel_uses() {
        let long = [&b"#!/"[..], &[b'a'; 252]].concat();
        for (text, name) in [
            (&b"#!/bin/sh -e\n"[..], "/bin/sh"),
            (b"#!/bin/sh", "/bin/sh"),
            (b"#! \t/bin/sh\t-e", "/bin/sh"),
            (b"#! /bin/sh\r\necho", "/bin/sh\r"),
            (&[&long[..], b"\n"].concat(), std::str::from_utf8(&long[2..]).unwrap()),
        ] {
            assert_eq!(of_text(text), Some(name.into()), "{text:?}");
        }
        let truncated = [&long[..], b"aaa\n"].concat();
        for none in [&b"#!\n"[..], b"#!", b"#!  \n/bin/sh", b"", b"echo", &truncated] {
            assert_eq!(of_text(none), None, "{none:?}");
        }
    }

    /// Makes a file with two program headers, of which the second is PT_INTERP.
    fn elf(class: u8, order: u8, name: &[u8]) -> Vec<u8> {
        let number = |size: usize, value: u64| -> Vec<u8> {
            let bytes = value.to_le_bytes()[..size].to_vec();
            if order == 1 { bytes } else { bytes.into_iter().rev().collect() }
        };
        let (word, header, entry) = if class == 1 { (4, 52, 32) } else { (8, 64, 56) };
        let mut file = vec![0; header + 2 * entry];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0x7f, b'E', b'L', b'F', class, order]);
        put(if class == 1 { 28 } else { 32 }, &number(word, header as u64));
        put(if class == 1 { 42 } else { 54 }, &[number(2, entry as u64), number(2, 2)].concat());
        let (at, second) = ((header + 2 * entry) as u64, header + entry);
        put(second, &number(4, 3));
        put(second + if class == 1 { 4 } else { 8 }, &number(word, at));
        put(second + if class == 1 { 16 } else { 32 }, &number(word, name.len() as u64));
        [&file[..], name].concat()
    }

    #[test]
    fn the_loader_of_a_binary_is_found_for_every_kind_of_machine() {
        for (class, order) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let file = elf(class, order, b"/lib/ld.so\0");
            assert_eq!(of_text(&file), Some("/lib/ld.so".into()), "{class} {order}");
            for end in 0..file.len() - 11 {
                assert_eq!(of_text(&file[..end]), None, "{class} {order} {end}");
            }
        }
        assert_eq!(of_text(&elf(3, 1, b"/lib/ld.so\0")), None);
        let ours = std::env::current_exe().unwrap();
        assert!(broken(&ours).is_none());
    }
}
