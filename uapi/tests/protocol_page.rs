// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! Compares the tables of `docs/protocol.md` with the code, both ways: ids and names, structures with the offsets of their
//! fields, constants and errors.

use std::{collections::BTreeMap, fs, path::Path};

use kvmi_uapi::{error, event, layout, msg};

struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    fs::read_to_string(path).expect("docs/protocol.md is there")
}

fn tables(page: &str) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        let Some(cells) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            inside = false;
            continue;
        };
        let cells: Vec<String> = cells.split('|').map(|cell| cell.trim().to_owned()).collect();
        match tables.last_mut() {
            Some(Table { rows, .. }) if inside => rows.push(cells),
            _ => tables.push(Table {
                head: cells,
                rows: Vec::new(),
            }),
        }
        inside = true;
    }
    for table in &mut tables {
        // Below its head, each table has a line of dashes.
        table.rows.remove(0);
    }
    tables
}

/// What the tables that begin with these columns say: the first column with what `value` makes of the row.
fn rows(columns: [&str; 2], value: impl Fn(&[String]) -> String) -> Vec<(String, String)> {
    tables(&page())
        .iter()
        .filter(|table| table.head.starts_with(&columns.map(str::to_owned)))
        .flat_map(|table| &table.rows)
        .map(|row| (row[0].clone(), value(row)))
        .collect()
}

/// Fails with what to change. `home`: where the code has them; `columns`: how the page's tables begin that list them.
fn compare(home: &str, columns: [&str; 2], in_code: Vec<(String, String)>, in_page: Vec<(String, String)>) {
    let what = columns[0];
    let mut complaints = Vec::new();
    let mut left: BTreeMap<String, String> = in_code.into_iter().collect();
    let mut seen = BTreeMap::new();
    for (key, says) in in_page {
        match left.remove(&key) {
            Some(is) if is == says => {}
            Some(is) => complaints.push(format!(
                "{what} {key} is `{is}` in {home}, the page says `{says}`: correct it"
            )),
            None if seen.contains_key(&key) => {
                complaints.push(format!("{what} {key} is listed twice: remove a row"));
            }
            None => complaints.push(format!(
                "{what} {key} `{says}` is not in {home}: remove its row, or define it there"
            )),
        }
        seen.insert(key, says);
    }
    for (key, is) in left {
        complaints.push(format!(
            "{what} {key} `{is}` of {home} is not in the page: describe it, with a row in a table \"| {} | {} |\"",
            columns[0], columns[1]
        ));
    }
    assert!(
        complaints.is_empty(),
        "docs/protocol.md is stale:\n  {}",
        complaints.join("\n  ")
    );
}

fn named<N: ToString>(table: &[(N, &str)]) -> Vec<(String, String)> {
    table
        .iter()
        .map(|(id, name)| (id.to_string(), (*name).to_owned()))
        .collect()
}

#[test]
fn commands() {
    let columns = ["id", "command"];
    compare(
        "msg::COMMANDS",
        columns,
        named(msg::COMMANDS),
        rows(columns, |row| row[1].clone()),
    );
}

#[test]
fn events() {
    let columns = ["id", "event"];
    compare(
        "event::ALL",
        columns,
        named(event::ALL),
        rows(columns, |row| row[1].clone()),
    );
}

#[test]
fn errors() {
    let columns = ["error", "value"];
    let code = error::ALL
        .iter()
        .map(|(value, name)| ((*name).to_owned(), value.to_string()))
        .collect();
    compare("error::ALL", columns, code, rows(columns, |row| row[1].clone()));
}

#[test]
fn constants() {
    let columns = ["constant", "value"];
    let code = layout::all_constants()
        .map(|constant| (constant.c_name.to_owned(), constant.value.to_string()))
        .collect();
    let page = rows(columns, |row| number(&row[1]));
    compare("layout::CONSTANTS", columns, code, page);
}

/// A number as the page writes it, in decimal.
fn number(cell: &str) -> String {
    match cell.strip_prefix("0x").map(|hex| u64::from_str_radix(hex, 16)) {
        Some(Ok(value)) => value.to_string(),
        _ => cell.to_owned(),
    }
}

#[test]
fn structures() {
    let columns = ["struct", "bytes"];
    let code = layout::all_structs()
        .map(|s| {
            let fields = s.fields.iter();
            let fields: Vec<String> = fields.map(|f| format!("{} @{}", f.c_name(), f.offset)).collect();
            (s.c_name.to_owned(), format!("{} bytes: {}", s.size, fields.join(", ")))
        })
        .collect();
    let page = rows(columns, |row| format!("{} bytes: {}", row[1], fields(&row[2])));
    compare("layout::STRUCTS", columns, code, page);
}

/// The fields that a cell names as "`field` @8", among words for the reader.
fn fields(cell: &str) -> String {
    let pieces: Vec<&str> = cell.split('`').collect();
    let fields: Vec<String> = pieces[1..]
        .chunks_exact(2)
        .filter_map(|pair| {
            let at = pair[1].strip_prefix(" @")?;
            let digits = at.find(|c: char| !c.is_ascii_digit()).unwrap_or(at.len());
            Some(format!("{} @{}", pair[0], &at[..digits]))
        })
        .collect();
    fields.join(", ")
}

/// Sources and commits cite sections and P numbers.
#[test]
fn numbers_that_are_cited_stay() {
    let page = page();
    for section in [
        "## 1. ", "## 2. ", "## 3. ", "### 3.4 ", "### 3.6 ", "## 4. ", "## 5. ", "## 6. ",
    ] {
        assert!(
            page.lines().any(|line| line.starts_with(section)),
            "docs/protocol.md has no section \"{section}\" any more: give it its number back"
        );
    }
    let numbers: Vec<String> = rows(["no.", "in v12"], |_| String::new())
        .into_iter()
        .map(|(no, _)| no)
        .collect();
    let expected: Vec<String> = (1..=numbers.len().max(21)).map(|n| format!("P{n}")).collect();
    assert_eq!(
        numbers, expected,
        "docs/protocol.md, appendix: a difference keeps its number, and a new one gets the next"
    );
}
