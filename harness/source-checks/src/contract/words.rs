// SPDX-License-Identifier: MIT OR Apache-2.0
//! The words of comments in `uapi` for readers of C: links become names that C knows.

use kvmi_uapi::layout;

/// A comment in one line. Names of constants and structures are those of C; `code` marks stay.
pub(super) fn in_c(doc: &str) -> String {
    let text: Vec<&str> = doc.split_whitespace().collect();
    let text = text.join(" ");
    let mut said = String::new();
    let mut rest = text.as_str();
    while let Some((before, link)) = rest.split_once("[`") {
        let Some((name, after)) = link.split_once("`]") else {
            break;
        };
        said += before;
        said += &named(name);
        rest = after;
    }
    said + rest
}

/// What C calls `crate::NAME`, a structure, or a field of one.
fn named(path: &str) -> String {
    let name = path.rsplit("::").next().unwrap_or(path);
    if let Some(constant) = layout::all_constants().find(|constant| constant.name == name) {
        return constant.c_name.to_owned();
    }
    match layout::all_structs().find(|s| s.name == name) {
        Some(s) => format!("struct {}", s.c_name),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_become_names_of_c() {
        assert_eq!(
            in_c(" At most [`crate::MAX_MSRS`] of [`crate::MsrEntry`],\n see [`Features::access`]; `size` bytes.\n"),
            "At most KVMI_MAX_MSRS of struct kvm_msr_entry, see access; `size` bytes."
        );
    }
}
