// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables of docs/protocol.md. A line `<!-- table: NAME -->` says which one stands there.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use kvmi_uapi::layout::{self, Constant, Group, Section, Struct};
use kvmi_uapi::table::{self, Data, Event};
use kvmi_uapi::{error, event};

use super::header::tail;
use super::words::in_c;

const BEGIN: &str = "<!-- table: ";
const BEGIN_END: &str = " -->\n";
const END: &str = "<!-- end of table -->";

/// The page with its tables made anew.
pub(super) fn text(page: &str) -> Result<String> {
    let mut tables = tables();
    let mut text = String::new();
    let mut rest = page;
    let mut placed = BTreeSet::new();
    while let Some((before, marked)) = rest.split_once(BEGIN) {
        let (name, behind) = marked
            .split_once(BEGIN_END)
            .context("a line `<!-- table: …` has no end")?;
        let (_, after) = behind
            .split_once(END)
            .with_context(|| format!("behind the table {name} is no `{END}`"))?;
        ensure!(placed.insert(name.to_owned()), "two places for the table {name}");
        let at = tables.iter().position(|(table, _)| table == name);
        let (_, table) = tables.swap_remove(at.with_context(|| format!("uapi has nothing for a table {name}"))?);
        text += &format!("{before}{BEGIN}{name}{BEGIN_END}{table}{END}");
        rest = after;
    }
    let lacking: Vec<String> = tables
        .into_iter()
        .map(|(name, _)| format!("`{BEGIN}{name}{}`", BEGIN_END.trim_end()))
        .collect();
    ensure!(
        lacking.is_empty(),
        "a table has no place: give it the lines {} and `{END}`",
        lacking.join(", ")
    );
    Ok(text + rest)
}

/// All tables by name.
fn tables() -> Vec<(String, String)> {
    let commands = [("VM commands", false), ("vCPU commands", true)];
    let mut tables: Vec<_> = commands
        .map(|(name, is_vcpu)| (name.to_owned(), commands_table(is_vcpu)))
        .into();
    tables.push(("events".to_owned(), events_table()));
    tables.push(("errors".to_owned(), errors_table()));
    for section in layout::SECTIONS {
        if !section.structs.is_empty() {
            tables.push((format!("structures, {}", section.title), structs_table(section)));
        }
        for group in section.groups {
            tables.push((format!("constants, {}", group.name), constants_table(group)));
        }
    }
    tables
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut text = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        text += &format!("| {} |\n", row.join(" | "));
    }
    text
}

fn commands_table(is_vcpu: bool) -> String {
    let rows = table::COMMANDS.iter().filter(|command| command.is_vcpu() == is_vcpu);
    table(
        &["id", "command", "request", "reply", "level"],
        rows.map(|command| {
            vec![
                command.id.to_string(),
                command.name.to_owned(),
                data(&command.request),
                data(&command.reply),
                command.since.to_string(),
            ]
        }),
    )
}

fn data(data: &Data) -> String {
    let head = data.head.map(|head| head.c_name.to_owned());
    let tail = data
        .tail
        .as_ref()
        .map(|tail| format!("{}[`{}`]", tail.unit.c_name, tail.count));
    let parts: Vec<String> = head.into_iter().chain(tail).collect();
    if parts.is_empty() {
        "none".to_owned()
    } else {
        parts.join(", ")
    }
}

fn events_table() -> String {
    table(
        &["id", "event", "data", "reply data", "actions", "level"],
        table::EVENTS.iter().map(|event| {
            let name = |s: Option<&Struct>| s.map_or("none", |s| s.c_name).to_owned();
            let reply = if event.is_vcpu() {
                name(event.reply)
            } else {
                "no reply".to_owned()
            };
            vec![
                event.id.to_string(),
                event.name.to_owned(),
                name(event.data),
                reply,
                actions(event).join(", "),
                event.since.to_string(),
            ]
        }),
    )
}

fn actions(event: &Event) -> Vec<&'static str> {
    let legal = |action: &&Constant| match action.value as u8 {
        event::RETRY => event.may_retry,
        _ => event.is_vcpu(),
    };
    event::ACTIONS
        .constants
        .iter()
        .filter(legal)
        .map(|action| action.name)
        .collect()
}

fn errors_table() -> String {
    let rows = error::ALL.iter().zip(error::ANSWERS);
    table(
        &["error", "value", "answers"],
        rows.map(|((value, name), answers)| vec![(*name).to_owned(), value.to_string(), in_c(answers)]),
    )
}

fn constants_table(group: &Group) -> String {
    let value = |constant: &Constant| match (constant.c_value, constant.rust_value) {
        (Some(_), _) => format!("{:#010x}", constant.value),
        (None, written) if written.starts_with("0x") => written.to_owned(),
        _ => constant.value.to_string(),
    };
    table(
        &["constant", "value", "what"],
        group
            .constants
            .iter()
            .map(|constant| vec![constant.c_name.to_owned(), value(constant), in_c(constant.doc)]),
    )
}

fn structs_table(section: &Section) -> String {
    table(
        &["struct", "bytes", "fields"],
        section
            .structs
            .iter()
            .map(|s| vec![s.c_name.to_owned(), s.size.to_string(), fields(s)]),
    )
}

/// Fields with their types and offsets; what follows the structure too.
fn fields(s: &Struct) -> String {
    let mut all: Vec<String> = s
        .fields
        .iter()
        .map(|field| {
            let of = match array(field.rust_type) {
                Some((unit, count)) => format!("{}[{count}]", type_name(unit)),
                None => type_name(field.rust_type),
            };
            format!("{of} `{}` @{}", field.c_name(), field.offset)
        })
        .collect();
    if let Some(tail) = tail(s) {
        all.push(format!(
            "{}[`{}`] `{}` @{}",
            tail.unit.c_name, tail.count, tail.name, s.size
        ));
    }
    all.join(", ")
}

/// A type as the page writes it.
fn type_name(rust: &str) -> String {
    if let Some(s) = layout::all_structs().find(|s| s.name == rust) {
        return s.c_name.to_owned();
    }
    match rust {
        "Char" => "char".to_owned(),
        _ => rust.replace('i', "s"),
    }
}

/// Unit and count of an array's type.
pub(super) fn array(rust: &str) -> Option<(&str, &str)> {
    rust.strip_prefix('[')?.strip_suffix(']')?.split_once("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> String {
        let mut tables = tables();
        let at = tables.iter().position(|(table, _)| table == name).expect(name);
        tables.swap_remove(at).1
    }

    #[test]
    fn rows_say_what_follows_and_what_is_legal() {
        let commands = of("VM commands");
        assert!(
            commands.contains("| 12 | VM_READ_PHYSICAL | kvmi_vm_read_physical | u8[`size`] | 0 |\n"),
            "{commands}"
        );
        let line = "| 128 | VM_GET_PAGE_ACCESS | kvmi_vm_page_access, kvmi_page_access_entry[`count`] | kvmi_page_access_entry[`count`] | 1 |\n";
        assert!(commands.contains(line), "{commands}");
        let events = of("events");
        assert!(events.contains("| 0 | UNHOOK | none | no reply |  | 0 |\n"), "{events}");
        assert!(
            events.contains("| 17 | PF | kvmi_vcpu_event_pf | none | CONTINUE, RETRY, CRASH | 0 |\n"),
            "{events}"
        );
    }

    #[test]
    fn each_table_stands_once() {
        let page = tables().iter().fold(String::new(), |page, (name, _)| {
            format!("{page}{BEGIN}{name}{BEGIN_END}before\n{END}\n")
        });
        let new = text(&page).unwrap();
        assert!(
            new.contains("| KVMI_MAX_MSRS | 481 |") && !new.contains("before\n"),
            "{new}"
        );
        assert_eq!(text(&new).unwrap(), new);
        let twice = format!("{page}{BEGIN}events{BEGIN_END}{END}");
        assert!(text(&twice).is_err());
        let error = text("").unwrap_err().to_string();
        assert!(error.contains("`<!-- table: errors -->`"), "{error}");
    }
}
