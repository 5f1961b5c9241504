// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which mirror of Debian the machine uses: from its own sources, in either form that apt takes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::stanza::parse_stanzas;

/// The address of the machine's mirror of a Debian archive, e.g. for `debian` it may be `http://deb.debian.org/debian`.
pub(crate) fn mirror(archive: &str) -> Result<String> {
    let mut texts = Vec::new();
    let lists = Path::new("/etc/apt/sources.list.d");
    let mut paths = vec![Path::new("/etc/apt/sources.list").to_owned()];
    if let Ok(entries) = fs::read_dir(lists) {
        paths.extend(entries.filter_map(Result::ok).map(|e| e.path()));
    }
    paths.sort();
    for path in paths {
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        if let ("list" | "sources", true) = (extension.as_str(), path.is_file()) {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            texts.push((extension, text));
        }
    }
    for (extension, text) in &texts {
        let found = if extension == "sources" {
            mirror_in_deb822(text, archive)
        } else {
            mirror_in_list(text, archive)
        };
        if let Some(mirror) = found {
            return Ok(mirror);
        }
    }
    bail!(
        "no mirror of {archive} in /etc/apt/sources.list or {}: the lab takes emulators and kernels from there",
        lists.display()
    )
}

/// A suite that Debian itself has: no folder of a private archive.
fn is_debians(suite: &str) -> bool {
    !suite.contains('/') && !suite.is_empty()
}

fn is_archive(address: &str, archive: &str) -> bool {
    let path = address.trim_end_matches('/');
    path.rsplit('/').next().is_some_and(|last| last == archive)
}

fn mirror_in_deb822(text: &str, archive: &str) -> Option<String> {
    parse_stanzas(text).into_iter().find_map(|s| {
        let words = |field| s.get(field).unwrap_or_default().split_whitespace();
        let enabled = !s.get("Enabled").is_some_and(|v| v.eq_ignore_ascii_case("no"));
        let fits = enabled && words("Types").any(|t| t == "deb") && words("Suites").any(is_debians);
        fits.then(|| words("URIs").find(|u| is_archive(u, archive)).map(str::to_owned))
            .flatten()
    })
}

fn mirror_in_list(text: &str, archive: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        // Options in brackets may contain spaces.
        let line = match (line.find('['), line.find(']')) {
            (Some(from), Some(to)) if from < to => format!("{}{}", &line[..from], &line[to + 1..]),
            _ => line.to_owned(),
        };
        let mut words = line.split_whitespace();
        let (kind, address, suite) = (words.next()?, words.next()?, words.next()?);
        (kind == "deb" && is_archive(address, archive) && is_debians(suite)).then(|| address.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_form() {
        let text = "Types: deb\n# a comment\nURIs: http://security.example/debian-security\nSuites: bookworm-security\nComponents: main\n\n\
                    Types: deb deb-src\nURIs: https://mirror.example/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n";
        assert_eq!(
            mirror_in_deb822(text, "debian").as_deref(),
            Some("https://mirror.example/debian/")
        );
        assert_eq!(
            mirror_in_deb822(&text.replace("deb deb-src", "deb-src"), "debian"),
            None
        );
        assert_eq!(
            mirror_in_deb822(
                &text.replace("Components: main\n", "Components: main\nEnabled: no\n"),
                "debian"
            ),
            None
        );
    }

    #[test]
    fn the_archive_for_security() {
        let text = "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm\n\nTypes: deb\nURIs: http://m.example/debian-security\nSuites: bookworm-security\n";
        let found = mirror_in_deb822(text, "debian-security");
        assert_eq!(found.as_deref(), Some("http://m.example/debian-security"));
        let list = "deb http://m.example/debian-security bookworm-security main\n";
        assert_eq!(
            mirror_in_list(list, "debian-security").as_deref(),
            Some("http://m.example/debian-security")
        );
    }

    #[test]
    fn the_old_form() {
        let text = "# deb http://old.example/debian bookworm main\ndeb http://x.example/debian-security bookworm-security main\n\
                    deb [arch=amd64 signed-by=/usr/share/a.gpg] http://mirror.example/debian bookworm main contrib\n";
        assert_eq!(
            mirror_in_list(text, "debian").as_deref(),
            Some("http://mirror.example/debian")
        );
        assert_eq!(
            mirror_in_list("deb http://packages.example/apt stable main\n", "debian"),
            None
        );
    }
}
