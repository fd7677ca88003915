//! Prints `buildlock status`: who holds which lock, and how many callers wait for it.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;

use crate::duration::for_people;
use crate::lock::HeldLock;
use crate::record::Holder;
use crate::visible::is_visible;

/// Prints held locks as a table or as a JSON array.
///
/// # Errors
/// The output cannot be written.
pub fn print(held: &[HeldLock], json: bool, out: &mut impl Write) -> Result<()> {
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(held)?)?;
    } else {
        table(held, out)?;
    }
    Ok(())
}

fn table(held: &[HeldLock], out: &mut impl Write) -> io::Result<()> {
    const HEAD: [&str; 5] = ["TAG", "HOLDER", "SINCE", "WAITERS", "COMMAND"];
    const WAITERS: usize = 3;
    let mut rows: Vec<[String; 5]> = held.iter().map(row).collect();
    let waiting = held.iter().flat_map(|lock| &lock.waiting);
    let in_line: Vec<_> = waiting.map(waiting_row).collect();
    for (n, two) in held.windows(2).enumerate() {
        if two[0].lock == two[1].lock {
            // Several holders share this lock. Its waiters stand in the row of the first.
            rows[n + 1][WAITERS].clear();
        }
    }
    // All callers that wait for a slot are counted with the first one.
    rows.iter_mut().zip(held).filter(|(_, lock)| lock.slot.is_some()).skip(1).for_each(
        |(row, _)| {
            row[WAITERS].clear();
        },
    );
    rows.extend(in_line);
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEAD[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    for row in [HEAD.map(str::to_owned)].iter().chain(&rows) {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            line.push_str(cell);
            // Not by the formatter, which takes no width above 65,535.
            line.push_str(&" ".repeat(width - cell.chars().count() + 2));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn row(lock: &HeldLock) -> [String; 5] {
    let holder = &lock.holder;
    let subject = match (&lock.tag, &lock.name, &lock.cache, lock.slot) {
        (Some(tag), ..) => tag.clone(),
        (None, Some(name), ..) => format!("lock {name}"),
        (None, None, Some(id), _) => format!("cache {id}"),
        (None, None, None, Some(number)) => format!("slot {number}"),
        // Another program took the lock by its path, and the path has only a hash of the name.
        (None, None, None, None) => lock.lock.display().to_string(),
    };
    let at = user_of(holder);
    let gone = if holder.gone { " (ended; something it left behind holds the lock)" } else { "" };
    let shared = if lock.shared { " (shared)" } else { "" };
    let ago = |held_for: Duration| {
        if holder.claimed {
            format!("{} ago (by its own account)", for_people(held_for))
        } else {
            format!("{} ago", for_people(held_for))
        }
    };
    let unknown = || "?".to_owned();
    visible([
        subject,
        format!("{at}pid {}{shared}{gone}", holder.pid),
        holder.held_for().map_or_else(unknown, ago),
        lock.waiters.to_string(),
        command_of(holder),
    ])
}

/// Returns the row of a caller that stands in line for a slot.
fn waiting_row(waiter: &Holder) -> [String; 5] {
    let who = format!("{}pid {}", user_of(waiter), waiter.pid);
    let nothing = String::new;
    visible(["waits for a slot".to_owned(), who, nothing(), nothing(), command_of(waiter)])
}

fn user_of(holder: &Holder) -> String {
    match (&holder.user, &holder.host) {
        (Some(user), Some(host)) => format!("{user}@{host}, "),
        (Some(user), None) => format!("{user}, "),
        (None, _) => String::new(),
    }
}

fn command_of(holder: &Holder) -> String {
    match &holder.command {
        Some(command) if holder.claimed => format!("{command} (by its own account)"),
        Some(command) => command.clone(),
        None => "?".to_owned(),
    }
}

fn visible(cells: [String; 5]) -> [String; 5] {
    cells.map(|cell| cell.chars().map(|c| if is_visible(c) { c } else { '?' }).collect())
}
