//! Reads lock files, into which anybody may write anything. Reading never panics, takes bounded
//! memory, and shows nothing that deceives a reader at a terminal. What a holder writes is read back.
//!
//! The input serves as the contents of the file, as the kernel's list of locks, and, split at its
//! line ends, as the texts of a record.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use buildlock::lock::HeldLock;
use buildlock::lock::kernel::KernelLocks;
use buildlock::log::Waiting;
use buildlock::record::{FailedBuild, Holder, read_record, read_result, write_line};
use buildlock::status;
use buildlock::subject::Subject;
use libfuzzer_sys::fuzz_target;

/// The largest record that is read, in bytes.
const RECORD_MAX: usize = 64 * 1024;

thread_local! {
    static FILE: RefCell<File> = RefCell::new(
        rustix::fs::memfd_create("lock", rustix::fs::MemfdFlags::CLOEXEC).expect("a file").into(),
    );
}

/// Whether a character moves the cursor, changes the direction of the text, or is invisible.
fn deceives(c: char) -> bool {
    c.is_control()
        || "\u{ad}\u{61c}\u{180e}\u{feff}".contains(c)
        || ('\u{200b}'..='\u{200f}').contains(&c)
        || ('\u{2028}'..='\u{202e}').contains(&c)
        || ('\u{2060}'..='\u{206f}').contains(&c)
        || ('\u{fff9}'..='\u{fffb}').contains(&c)
        || ('\u{e0000}'..='\u{e007f}').contains(&c)
}

fn check_shown(holder: &Holder) {
    let subject = Subject::Image("env:abc".into());
    for gone in [false, true] {
        let holder = Holder { gone, ..holder.clone() };
        let message = Waiting { subject: &subject, holder: Some(&holder) }.to_string();
        assert!(!message.contains(deceives), "{message:?}");
        assert!(message.starts_with("env:abc: waiting for "));

        let held = [HeldLock {
            tag: holder.tag.clone(),
            name: holder.name.clone(),
            cache: holder.cache.clone(),
            slot: holder.slot,
            waiting: vec![holder.clone()],
            lock: Path::new("/tmp/buildlock/image-locks/x.lock").into(),
            holder,
            shared: false,
            waiters: 1,
        }];
        let mut table = Vec::new();
        status::print(&held, false, &mut table).expect("a table");
        let table = String::from_utf8(table).expect("UTF-8");
        assert!(!table.replace('\n', "").contains(deceives), "{table:?}");
        assert_eq!(table.lines().count(), 3, "{table:?}");
        let mut json = Vec::new();
        status::print(&held, true, &mut json).expect("JSON");
        let json: serde_json::Value = serde_json::from_slice(&json).expect("valid JSON");
        assert_eq!(json[0]["waiters"], 1);
    }
}

/// Checks what is read from a file with any contents.
fn any_contents(file: &File, data: &[u8]) {
    file.set_len(0).expect("an empty file");
    file.write_all_at(data, 0).expect("a file");
    let (record, result) = (read_record(file), read_result(file));
    if let Some(holder) = &record {
        check_shown(holder);
        assert!(holder.held_for().is_none_or(|held| held < Duration::from_secs(1 << 40)));
    }
    if !data.len().is_multiple_of(4) {
        return;
    }
    // An endless file takes no more memory, and reads the same.
    file.set_len(1 << 40).expect("a sparse file");
    if data.iter().take(RECORD_MAX).any(|&c| c == b'\n') {
        assert_eq!((read_record(file), read_result(file)), (record, result));
    } else {
        assert_eq!((&record, &result), (&None, &None));
        assert_eq!((read_record(file), read_result(file)), (None, None));
    }
}

/// Checks that what a holder writes is read back.
fn round_trip(file: &File, text: &str) {
    let mut texts = text.split('\n').map(|text| Some(text.to_owned()));
    let mut next = || texts.next().flatten();
    let (user, host, tag, name, command) = (next(), next(), next(), next(), next());
    let (since, version, build) = (next(), next(), next());
    let pid = text.len() as u32;
    let holder =
        Holder { pid, user, host, tag, name, command, since, version, build, ..Holder::default() };
    write_line(file, Some(&holder)).expect("a record");
    let length = file.metadata().expect("a file").len();
    match read_record(file) {
        None => assert!(length > RECORD_MAX as u64, "{holder:?}"),
        Some(read) if text.replace('\n', "").contains(deceives) => check_shown(&read),
        Some(read) => assert_eq!(read, holder),
    }
    assert_eq!(read_result(file), None);

    let result = FailedBuild { build: text.to_owned(), status: text.len() as u8 };
    write_line(file, Some(&result)).expect("a result");
    if file.metadata().expect("a file").len() <= RECORD_MAX as u64 {
        assert_eq!((read_result(file), read_record(file)), (Some(result), None));
    }
}

/// Checks what is read from the kernel's list, with any text and with well-formed lines.
fn kernels_list(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let read = KernelLocks::parse(&text).inodes_held();
    assert!(read.len() <= text.lines().filter(|line| line.contains("FLOCK")).count());

    let mut list = String::new();
    let mut expected = Vec::new();
    for (at, bytes) in data.chunks_exact(18).take(20).enumerate() {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let (major, minor, pid) = (number(0) & 0xfff, number(4), number(8));
        let inode = u64::from(number(12)) << (bytes[16] % 33);
        let (arrow, kind, access) = match bytes[17] % 6 {
            0 => ("-> ", "FLOCK ", "WRITE"),
            1 => ("", "POSIX ", "WRITE"),
            2 => ("", "LEASE ", "READ "),
            3 => ("", "FLOCK ", "READ "),
            _ => ("", "FLOCK ", "WRITE"),
        };
        let line = format!(
            "{at}: {arrow}{kind} ADVISORY  {access} {pid} {major:02x}:{minor:02x}:{inode} 0 EOF\n"
        );
        list.push_str(&line);
        if arrow.is_empty() && kind == "FLOCK " {
            expected.push((pid, inode, major, minor, access));
        }
    }
    expected.sort_unstable();
    expected.dedup();
    let mut held = KernelLocks::parse(&list).inodes_held();
    held.sort_unstable();
    let mut inodes: Vec<u64> = expected.iter().map(|lock| lock.1).collect();
    inodes.sort_unstable();
    assert_eq!(held, inodes, "{list}");
}

fuzz_target!(|data: &[u8]| {
    FILE.with_borrow(|file| {
        any_contents(file, data);
        round_trip(file, &String::from_utf8_lossy(data));
    });
    kernels_list(data);
});
