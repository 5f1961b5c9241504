// SPDX-License-Identifier: MIT OR Apache-2.0
//! Results kept outside the checkout, each under the hash of all that went into it.
//!
//! An entry appears whole or not at all: it is made in a temporary folder beside its place and then renamed. A second process that wants
//! the same entry waits for the first one.

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use walkdir::WalkDir;

/// How the name of an entry begins that is being made, before its key.
const UNFINISHED: &str = ".unfinished-";

/// Why the cache could not serve.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// There is no place for it.
    #[error("no folder for the cache: set KVMI_CACHE, XDG_CACHE_HOME or HOME")]
    NoPlace,
    /// A file operation failed.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CacheError + 'a {
    move |error| CacheError::Io {
        action,
        path: path.to_owned(),
        error,
    }
}

/// The folder that holds downloads and results, `~/.cache/kvmi` unless `KVMI_CACHE` says otherwise.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Finds the place from the environment.
    ///
    /// # Errors
    ///
    /// [`CacheError::NoPlace`]
    pub fn from_env() -> Result<Self, CacheError> {
        let var = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = var("KVMI_CACHE")
            .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("kvmi")))
            .or_else(|| var("HOME").map(|d| d.join(".cache/kvmi")))
            .ok_or(CacheError::NoPlace)?;
        Ok(Self::at(std::path::absolute(&root).map_err(io_error("locate", &root))?))
    }

    /// A cache in a given folder, which is made when it is first needed.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A folder for work that is faster when it goes on from where it was, e.g. a build tree. Made if missing.
    ///
    /// # Errors
    ///
    /// [`CacheError::Io`]
    pub fn work(&self, name: &str) -> Result<PathBuf, CacheError> {
        let dir = self.root.join("work").join(name);
        fs::create_dir_all(&dir).map_err(io_error("make", &dir))?;
        Ok(dir)
    }

    /// Waits until no other process holds the lock `name`; it is given back when the result is dropped.
    ///
    /// # Errors
    ///
    /// [`CacheError::Io`]
    pub fn lock(&self, name: &str) -> Result<Lock, CacheError> {
        let path = self.lock_file(name)?;
        let file = File::create(&path).map_err(io_error("open", &path))?;
        file.lock().map_err(io_error("lock", &path))?;
        Ok(Lock { _file: file })
    }

    /// Where the entry is, if it has been made.
    #[must_use]
    pub fn find(&self, kind: &str, key: &Key) -> Option<PathBuf> {
        let place = self.place(kind, key);
        place.is_dir().then_some(place)
    }

    /// The folder of the entry `key`, made by `make` in the folder it is given unless it exists.
    ///
    /// # Errors
    ///
    /// Whatever `make` fails with (nothing is kept then), or [`CacheError::Io`].
    pub fn entry<E: From<CacheError>>(
        &self,
        kind: &str,
        key: &Key,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        if let Some(place) = self.find(kind, key) {
            return Ok(place);
        }
        let _lock = self.lock(&format!("{kind}-{}", key.0))?;
        if let Some(place) = self.find(kind, key) {
            return Ok(place);
        }
        let place = self.place(kind, key);
        let unfinished = self.root.join(kind).join(format!("{UNFINISHED}{}", key.0));
        // Left by a process that was killed: the lock says that nobody works on it.
        remove(&unfinished)?;
        fs::create_dir_all(&unfinished).map_err(io_error("make", &unfinished))?;
        if let Err(e) = make(&unfinished) {
            remove(&unfinished)?;
            return Err(e);
        }
        fs::rename(&unfinished, &place).map_err(io_error("move into place", &place))?;
        Ok(place)
    }

    /// Removes entries of a kind but the `keep` that were made last, and what killed processes left of others.
    ///
    /// # Errors
    ///
    /// [`CacheError::Io`]
    pub fn prune(&self, kind: &str, keep: usize) -> Result<(), CacheError> {
        let dir = self.root.join(kind);
        let Ok(entries) = fs::read_dir(&dir) else { return Ok(()) };
        let mut finished: Vec<_> = entries
            .filter_map(Result::ok)
            .filter(|e| !e.file_name().to_string_lossy().starts_with('.'))
            .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
            .collect();
        finished.sort();
        let surplus = finished.len().saturating_sub(keep);
        finished[..surplus].iter().try_for_each(|(_, path)| remove(path))?;
        self.sweep(kind)
    }

    /// Removes unfinished entries of a kind that nobody works on.
    fn sweep(&self, kind: &str) -> Result<(), CacheError> {
        let dir = self.root.join(kind);
        for entry in fs::read_dir(&dir).map_err(io_error("look into", &dir))? {
            let entry = entry.map_err(io_error("look into", &dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(key) = name.strip_prefix(UNFINISHED) else {
                continue;
            };
            let path = self.lock_file(&format!("{kind}-{key}"))?;
            let file = File::create(&path).map_err(io_error("open", &path))?;
            if file.try_lock().is_ok() {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    fn lock_file(&self, name: &str) -> Result<PathBuf, CacheError> {
        let dir = self.root.join("locks");
        fs::create_dir_all(&dir).map_err(io_error("make", &dir))?;
        Ok(dir.join(name))
    }

    fn place(&self, kind: &str, key: &Key) -> PathBuf {
        self.root.join(kind).join(&key.0)
    }
}

fn remove(dir: &Path) -> Result<(), CacheError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// A lock that is held.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The hash of everything that goes into an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Starts a key. `recipe` names what is done with the inputs, and changes when that changes.
    #[must_use]
    pub fn of(recipe: &str) -> KeyBuilder {
        KeyBuilder(Sha256::new()).text("recipe", recipe)
    }

    /// The key as the folder's name, 32 hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Collects what goes into an entry.
#[derive(Debug)]
pub struct KeyBuilder(Sha256);

impl KeyBuilder {
    /// A text, e.g. a version or a command line.
    #[must_use]
    pub fn text(self, label: &str, text: &str) -> Self {
        self.bytes(label, text.as_bytes())
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(mut self, label: &str, bytes: &[u8]) -> Self {
        for part in [label.as_bytes(), bytes] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// A file's content, under a name that does not depend on where the checkout is.
    ///
    /// # Errors
    ///
    /// [`CacheError::Io`]
    pub fn file(self, label: &str, path: &Path) -> Result<Self, CacheError> {
        let content = fs::read(path).map_err(io_error("read", path))?;
        Ok(self.bytes(label, &content))
    }

    /// All files below a folder whose name `keep` accepts, with their relative paths. A missing folder counts as empty.
    ///
    /// # Errors
    ///
    /// [`CacheError::Io`]
    pub fn tree(mut self, label: &str, dir: &Path, keep: impl Fn(&str) -> bool) -> Result<Self, CacheError> {
        for (name, path) in files_below(dir)? {
            if keep(&name) {
                self = self.file(&format!("{label}/{name}"), &path)?;
            }
        }
        Ok(self)
    }

    /// The key.
    #[must_use]
    pub fn finish(self) -> Key {
        let digest = self.0.finalize();
        Key(digest[..16].iter().map(|b| format!("{b:02x}")).collect())
    }
}

/// Every file below `dir` as (path relative to it, path), sorted; none when there is no such folder.
///
/// # Errors
///
/// [`CacheError::Io`]
pub fn files_below(dir: &Path) -> Result<Vec<(String, PathBuf)>, CacheError> {
    let mut files = Vec::new();
    if !dir.exists() {
        return Ok(files);
    }
    for entry in WalkDir::new(dir) {
        let entry = entry.map_err(|e| io_error("read", dir)(e.into()))?;
        if let (true, Ok(name)) = (entry.file_type().is_file(), entry.path().strip_prefix(dir)) {
            files.push((name.to_string_lossy().into_owned(), entry.path().to_owned()));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::of("test").text("input", text).finish()
    }

    #[test]
    fn an_entry_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let mut made = 0;
        for _ in 0..2 {
            let at = cache
                .entry("kind", &key("a"), |into| {
                    made += 1;
                    fs::write(into.join("file"), "content").map_err(io_error("write", into))
                })
                .unwrap();
            assert_eq!(fs::read_to_string(at.join("file")).unwrap(), "content");
        }
        assert_eq!(made, 1);
        assert!(cache.find("kind", &key("b")).is_none());
    }

    #[test]
    fn a_failure_leaves_nothing_that_looks_finished() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let failed = cache.entry("kind", &key("a"), |into| {
            fs::write(into.join("half"), "").map_err(io_error("write", into))?;
            Err(CacheError::NoPlace)
        });
        assert!(matches!(failed, Err(CacheError::NoPlace)));
        assert!(cache.find("kind", &key("a")).is_none());
        assert_eq!(fs::read_dir(dir.path().join("kind")).unwrap().count(), 0);
    }

    #[test]
    fn pruning_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        for (age, name) in [(30, "a"), (20, "b"), (10, "c")] {
            let at = cache.entry::<CacheError>("kind", &key(name), |_| Ok(())).unwrap();
            let when = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
            File::open(at).unwrap().set_modified(when).unwrap();
        }
        cache.prune("kind", 2).unwrap();
        assert!(cache.find("kind", &key("a")).is_none());
        assert!(cache.find("kind", &key("b")).is_some() && cache.find("kind", &key("c")).is_some());
        cache.prune("no such kind", 2).unwrap();
    }

    #[test]
    fn pruning_sweeps_what_nobody_works_on() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let unfinished = |key: &Key| dir.path().join("kind").join(format!("{UNFINISHED}{}", key.as_str()));
        let (left, in_work) = (key("left"), key("in work"));
        fs::create_dir_all(unfinished(&left)).unwrap();
        cache
            .entry::<CacheError>("kind", &in_work, |into| {
                cache.prune("kind", 2)?;
                assert!(into.is_dir() && !unfinished(&left).exists());
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn what_a_killed_process_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let left = dir
            .path()
            .join("kind")
            .join(format!(".unfinished-{}", key("a").as_str()));
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("half"), "").unwrap();
        let at = cache.entry::<CacheError>("kind", &key("a"), |_| Ok(())).unwrap();
        assert_eq!(fs::read_dir(at).unwrap().count(), 0);
    }

    #[test]
    fn two_who_want_the_same_make_it_once() {
        let dir = tempfile::tempdir().unwrap();
        let made = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    Cache::at(dir.path())
                        .entry::<CacheError>("kind", &key("a"), |_| {
                            made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            Ok(())
                        })
                        .unwrap()
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn a_key_knows_where_one_input_ends() {
        let two = |a, b| Key::of("r").text("x", a).text("y", b).finish();
        assert_ne!(two("ab", "c"), two("a", "bc"));
        assert_eq!(two("a", "b"), two("a", "b"));
    }

    #[test]
    fn a_tree_counts_names_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let of = || {
            Key::of("r")
                .tree("t", dir.path(), |n| n.ends_with(".c"))
                .unwrap()
                .finish()
        };
        let empty = of();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/a.c"), "1").unwrap();
        let one = of();
        fs::write(dir.path().join("d/a.o"), "2").unwrap();
        assert_eq!(one, of());
        fs::rename(dir.path().join("d/a.c"), dir.path().join("d/b.c")).unwrap();
        assert_ne!(one, of());
        assert_ne!(one, empty);
    }
}
