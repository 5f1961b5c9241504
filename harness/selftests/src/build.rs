// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiling the selftests of a kernel's source package, statically, with `hook.c` linked into each.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kvmi_lab_machine::cache::{Cache, CacheError, Key, files_below};
use kvmi_lab_machine::process::{ProcessError, Program};
use kvmi_lab_machine::progress::{Progress, Task};

/// What is done with the sources. Another text means that what is in the cache is built anew.
const RECIPE: &str = "selftests 1";

/// The parts of the kernel's source that the tests and the headers for them are made of.
const PARTS: &[&str] = &[
    "Makefile",
    "Kbuild",
    "Kconfig",
    "scripts",
    "tools/arch",
    "tools/build",
    "tools/include",
    "tools/lib",
    "tools/scripts",
    "tools/testing/selftests",
    "usr",
    "include",
    "arch/Kconfig",
    "arch/x86",
];

/// Where the tests are in the source.
const TESTS: &str = "tools/testing/selftests/kvm";

/// What is linked into each test.
const HOOK: &str = include_str!("../hook.c");

/// The compiler, and what takes symbols out of programs.
const COMPILER: &str = "gcc";
const STRIP: &str = "strip";

/// How many builds stay in the cache.
const KEPT: usize = 2;

/// The folder of the programs in the cache's entry.
const PROGRAMS: &str = "programs";

/// Why there are no tests.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A program failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The kernel's source could not be had.
    #[error("unpack the kernel's source: {0}")]
    Unpack(Box<dyn Error + Send + Sync>),
    /// A file could not be read or written.
    #[error("cannot {action}: {error}")]
    Io {
        /// What was tried.
        action: String,
        /// The system's answer.
        error: io::Error,
    },
    /// Two tests would be one in reports.
    #[error("two selftests are called `{0}`")]
    Twice(String),
    /// The build made nothing.
    #[error("the build made no selftest: is there a {TESTS} in the kernel's source?")]
    Nothing,
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> BuildError {
    move |error| BuildError::Io {
        action: action.into(),
        error,
    }
}

/// Each test's program, by the test's name: the name of its file.
pub type Programs = BTreeMap<String, PathBuf>;

/// Builds all tests, unless the cache has them.
///
/// `version` is that of the source package. `unpack` gets a folder, the parts of the source that are wanted, and what to tell of it.
///
/// # Errors
///
/// [`BuildError`]
pub fn build(
    cache: &Cache,
    progress: &Progress,
    version: &str,
    jobs: usize,
    unpack: impl FnOnce(&Path, &[&str], &Task) -> Result<(), Box<dyn Error + Send + Sync>>,
) -> Result<Programs, BuildError> {
    let compiler = Program::new(COMPILER).arg("--version").output()?;
    let key = Key::of(RECIPE)
        .text("version", version)
        .text("hook", HOOK)
        .bytes("compiler", &compiler)
        .finish();
    let entry = cache.entry("selftests", &key, |into| {
        let task = progress.task(format!("build KVM's selftests of {version}"));
        let source = into.join("source");
        fs::create_dir(&source).map_err(io_error(format!("make {}", source.display())))?;
        unpack(&source, PARTS, &task).map_err(BuildError::Unpack)?;
        compile(&source, &into.join(PROGRAMS), jobs, &task)?;
        fs::remove_dir_all(&source).map_err(io_error("remove the kernel's source"))?;
        task.done();
        Ok::<(), BuildError>(())
    })?;
    cache.prune("selftests", KEPT)?;
    programs(&entry.join(PROGRAMS))
}

/// Compiles what is in a source tree; the programs alone go into a folder.
fn compile(source: &Path, programs: &Path, jobs: usize, task: &Task) -> Result<(), BuildError> {
    let make = || Program::new("make").arg(format!("-j{jobs}")).env("LC_ALL", "C");
    make().arg("-C").arg(source).args(["ARCH=x86", "headers"]).run(task)?;
    let headers = format!("-isystem {}", source.join("usr/include").display());
    let (hook, object) = (source.join("hook.c"), source.join("hook.o"));
    fs::write(&hook, HOOK).map_err(io_error("write hook.c"))?;
    Program::new(COMPILER)
        .args(["-O2", "-Wall", "-Wextra", "-Werror"])
        .args(headers.split(' '))
        .arg("-c")
        .arg(&hook)
        .arg("-o")
        .arg(&object)
        .run(task)?;
    let output = source.join("output");
    fs::create_dir(&output).map_err(io_error("make the folder for the tests"))?;
    make()
        .arg("-C")
        .arg(source.join(TESTS))
        .args(["ARCH=x86_64", &format!("CC={COMPILER}")])
        .arg(format!("OUTPUT={}", output.display()))
        .arg(format!("KHDR_INCLUDES={headers}"))
        .arg(format!(
            "LDFLAGS=-static -Wl,--wrap=ioctl,--wrap=alarm {}",
            object.display()
        ))
        .run(task)?;
    fs::create_dir(programs).map_err(io_error("make the folder for the programs"))?;
    for (path, program) in executables(&output)? {
        let name = test_name(&path);
        let to = programs.join(name);
        if to.exists() {
            return Err(BuildError::Twice(name.to_owned()));
        }
        Program::new(STRIP).arg("-o").arg(&to).arg(&program).run(task)?;
    }
    Ok(())
}

/// A test is called as its file is, whatever the folder.
fn test_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// What in a folder can be run, by its path there.
fn executables(folder: &Path) -> Result<Vec<(String, PathBuf)>, BuildError> {
    let mut found = Vec::new();
    for (name, path) in files_below(folder)? {
        let metadata = fs::metadata(&path).map_err(io_error(format!("look at {}", path.display())))?;
        if metadata.permissions().mode() & 0o111 != 0 && !name.ends_with(".so") {
            found.push((name, path));
        }
    }
    Ok(found)
}

fn programs(folder: &Path) -> Result<Programs, BuildError> {
    let programs: Programs = files_below(folder)?.into_iter().collect();
    if programs.is_empty() {
        return Err(BuildError::Nothing);
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_what_they_are_made_of() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [
            ("x86_64/smm_test", 0o755),
            ("x86_64/smm_test.o", 0o644),
            ("dirty_log_test", 0o755),
        ] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let names: Vec<String> = executables(dir.path())
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["dirty_log_test", "x86_64/smm_test"]);
        assert_eq!(test_name("x86_64/smm_test"), "smm_test");
    }

    #[test]
    fn a_build_without_tests_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(programs(dir.path()), Err(BuildError::Nothing)));
    }
}
