// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether this machine's KVM carries the lanes svm-kvm and vmx-kvm. Four steps, each of which says more than the one before: the device
//! opens, KVM makes a VM, it offers guests the vendor's extension, a guest runs. Only the last proves anything.

use std::fs::{self, OpenOptions};
use std::path::Path;

use anyhow::Result;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm};
use kvmi_lab_control::{Backend, Lane, Platform};
use kvmi_lab_environment::Environment;
use kvmi_lab_kernel as kernel;
use kvmi_lab_machine::emulator::Emulators;
use kvmi_lab_machine::kvm_guest;
use serde::{Deserialize, Serialize};

use crate::emulators;

/// KVM's device.
const DEVICE: &str = "/dev/kvm";

/// What was found of a machine, as plain data; each step is looked at only when the one before is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Step 1: opening the device, the system's answer where it does not open.
    pub open: Result<(), String>,
    /// Step 2: KVM_CREATE_VM.
    pub create_vm: Option<Result<(), String>>,
    /// Step 3: the extensions in KVM_GET_SUPPORTED_CPUID.
    pub extensions: Option<Vec<Backend>>,
    /// The vendor module's parameter `nested`, where there is one.
    pub nested: Option<String>,
    /// Whether this machine is itself a guest.
    pub in_a_guest: bool,
    /// Step 4: how a stock kernel ended under this KVM; not tried where it cannot be yet.
    pub guest: Option<Result<(), String>>,
}

/// Why a hardware lane does not run here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unavailable {
    /// Which of the four steps failed.
    pub step: u8,
    /// How.
    pub why: String,
    /// What would mend it.
    pub mend: String,
}

impl Unavailable {
    /// Whether it is only that the last step was not tried yet.
    pub fn is_untried(&self, facts: &Facts) -> bool {
        self.step == 4 && facts.guest.is_none()
    }

    /// In one line.
    pub fn text(&self) -> String {
        format!("step {} of 4 failed, {}; {}", self.step, self.why, self.mend)
    }
}

/// Whether a back end's lane runs on a machine of which this was found.
pub(crate) fn decide(facts: &Facts, backend: Backend) -> Result<(), Unavailable> {
    let lack = |step, why: String, mend: &str| {
        Err(Unavailable {
            step,
            why,
            mend: mend.to_owned(),
        })
    };
    if let Err(why) = &facts.open {
        let mend = if why.contains("ermission") {
            "to mend it: sudo usermod -aG kvm $USER, then log in again"
        } else {
            "to mend it: switch virtualization on in the firmware, then modprobe kvm_intel or kvm_amd"
        };
        return lack(1, format!("{DEVICE} does not open: {why}"), mend);
    }
    if let Some(Err(why)) = &facts.create_vm {
        let mend = "to mend it: see what the kernel's log says of kvm";
        return lack(2, format!("KVM makes no VM: {why}"), mend);
    }
    let extensions = facts.extensions.as_deref().unwrap_or_default();
    if !extensions.contains(&backend) {
        let name = backend.to_string().to_uppercase();
        if let Some(other) = extensions.first() {
            return lack(
                3,
                format!("KVM offers guests {other}, not {backend}"),
                "this takes a machine of the other vendor",
            );
        }
        let module = match backend {
            Backend::Svm => "kvm_amd",
            Backend::Vmx => "kvm_intel",
        };
        let mend = match facts.nested.as_deref() {
            Some("N" | "0") => format!("to mend it: modprobe -r {module} && modprobe {module} nested=1"),
            _ if facts.in_a_guest => {
                "this machine is a guest whose hypervisor passes no virtualization on: switch nesting on there, or take another machine".to_owned()
            }
            _ => format!("this takes a machine with {name}"),
        };
        return lack(
            3,
            format!("KVM offers guests neither VMX nor SVM, so no {name} (KVM_GET_SUPPORTED_CPUID)"),
            &mend,
        );
    }
    match &facts.guest {
        Some(Ok(())) => Ok(()),
        Some(Err(why)) => lack(
            4,
            format!("a stock kernel does not run as a guest: {why}"),
            "nothing here mends that: take another machine",
        ),
        None => lack(4, "no guest was tried yet".to_owned(), "to try one: cargo xtask e2e"),
    }
}

/// Steps 1 to 3, and step 4 where what it takes is at hand.
pub fn probe(env: &Environment) -> Result<Facts> {
    let mut facts = look();
    if let (Some(root), Some(image)) = (emulators::find(env), kernel::image_at_hand(env)) {
        try_guest(env, &mut facts, &Emulators::at(root), &image)?;
    }
    Ok(facts)
}

/// Step 4, where the steps before it are well.
pub fn try_guest(env: &Environment, facts: &mut Facts, emulators: &Emulators, kernel: &Path) -> Result<()> {
    if facts.extensions.as_ref().is_none_or(Vec::is_empty) || facts.guest.is_some() {
        return Ok(());
    }
    let task = env.progress.task("boot a guest under this machine's KVM");
    let folder = env.cache.work("probe-guest")?;
    let _lock = env.cache.lock("probe-guest")?;
    facts.guest = Some(kvm_guest::run(emulators, kernel, "kvm", &folder)?);
    task.done();
    Ok(())
}

/// Steps 1 to 3.
pub fn look() -> Facts {
    look_at(Path::new(DEVICE))
}

fn look_at(device: &Path) -> Facts {
    let nested = ["kvm_intel", "kvm_amd"].map(|module| format!("/sys/module/{module}/parameters/nested"));
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut facts = Facts {
        open: OpenOptions::new()
            .read(true)
            .write(true)
            .open(device)
            .map(drop)
            .map_err(|e| e.to_string()),
        create_vm: None,
        extensions: None,
        nested: nested
            .iter()
            .find_map(|path| fs::read_to_string(path).ok())
            .map(|text| text.trim().to_owned()),
        in_a_guest: cpuinfo
            .lines()
            .any(|l| l.starts_with("flags") && l.split_whitespace().any(|w| w == "hypervisor")),
        guest: None,
    };
    if facts.open.is_err() {
        return facts;
    }
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(e) => {
            facts.open = Err(e.to_string());
            return facts;
        }
    };
    let made = kvm.create_vm().map(drop).map_err(|e| e.to_string());
    if made.is_ok() {
        facts.extensions = Some(extensions(&kvm));
    }
    facts.create_vm = Some(made);
    facts
}

fn extensions(kvm: &Kvm) -> Vec<Backend> {
    if !kvm.check_extension(Cap::ExtCpuid) {
        return Vec::new();
    }
    let Ok(cpuid) = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES) else {
        return Vec::new();
    };
    let has = |function: u32, bit: u32| {
        let mut entries = cpuid.as_slice().iter();
        entries.any(|e| e.function == function && e.ecx & (1 << bit) != 0)
    };
    let all = [(Backend::Vmx, has(1, 5)), (Backend::Svm, has(0x8000_0001, 2))];
    all.into_iter()
        .filter(|(_, has)| *has)
        .map(|(backend, _)| backend)
        .collect()
}

/// Why a lane does not run here; nothing where it does.
pub fn lack(facts: &Facts, lane: Lane) -> Option<Unavailable> {
    match lane.platform() {
        Platform::Kvm => decide(facts, lane.backend()).err(),
        _ => None,
    }
}

/// Why each hardware lane is out of the question here, in a line each; empty where one is worth a try.
pub fn unavailable_lanes() -> Vec<String> {
    let facts = look();
    let lanes = Lane::ALL.iter().copied().filter(|lane| !lane.platform().is_emulated());
    let lacks: Vec<Option<String>> = lanes
        .map(|lane| {
            let lack = lack(&facts, lane).filter(|lack| lack.step < 4)?;
            Some(format!("without {lane}: {}", lack.text()))
        })
        .collect();
    lacks.into_iter().collect::<Option<_>>().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cloud machine whose hypervisor passes nothing on: the device opens, VMs are made, and that is all.
    const HOLLOW: &str = r#"{ "open": { "Ok": null }, "create_vm": { "Ok": null }, "extensions": [], "nested": null, "in_a_guest": true, "guest": null }"#;

    /// An Intel machine on which everything works.
    const INTEL: &str = r#"{ "open": { "Ok": null }, "create_vm": { "Ok": null }, "extensions": ["vmx"], "nested": "Y", "in_a_guest": false, "guest": { "Ok": null } }"#;

    fn facts(json: &str) -> Facts {
        serde_json::from_str(json).unwrap()
    }

    fn step(facts: &Facts, backend: Backend) -> (u8, String) {
        let lack = decide(facts, backend).unwrap_err();
        (lack.step, lack.text())
    }

    #[test]
    fn a_machine_without_the_device_is_no_error() {
        let facts = look_at(Path::new("/no/such/device"));
        let (step, text) = step(&facts, Backend::Vmx);
        assert_eq!(step, 1);
        assert!(
            text.contains("/dev/kvm does not open: No such file") && text.contains("firmware"),
            "{text}"
        );
        assert_eq!((facts.create_vm, facts.extensions, facts.guest), (None, None, None));
    }

    #[test]
    fn step_1_tells_a_missing_right_from_a_missing_device() {
        let facts = Facts {
            open: Err("Permission denied (os error 13)".into()),
            ..facts(INTEL)
        };
        let (step, text) = step(&facts, Backend::Vmx);
        assert!(step == 1 && text.contains("usermod -aG kvm"), "{text}");
    }

    #[test]
    fn step_2_is_a_vm() {
        let facts = Facts {
            create_vm: Some(Err("Cannot allocate memory".into())),
            ..facts(INTEL)
        };
        assert_eq!(step(&facts, Backend::Vmx).0, 2);
    }

    #[test]
    fn step_3_is_the_extension_and_says_what_hides_it() {
        for backend in [Backend::Svm, Backend::Vmx] {
            let (step, text) = step(&facts(HOLLOW), backend);
            assert!(step == 3 && text.contains("passes no virtualization on"), "{text}");
        }
        let off = Facts {
            nested: Some("N".into()),
            in_a_guest: false,
            ..facts(HOLLOW)
        };
        assert!(step(&off, Backend::Vmx).1.contains("modprobe kvm_intel nested=1"));
        assert!(step(&off, Backend::Svm).1.contains("modprobe kvm_amd nested=1"));
        let (step, text) = step(&facts(INTEL), Backend::Svm);
        assert!(step == 3 && text.contains("KVM offers guests vmx, not svm"), "{text}");
    }

    #[test]
    fn step_4_is_a_guest_that_ran() {
        assert_eq!(decide(&facts(INTEL), Backend::Vmx), Ok(()));
        let died = Facts {
            guest: Some(Err("KVM stopped it (KVM internal error. Suberror: 1)".into())),
            ..facts(INTEL)
        };
        let (number, text) = step(&died, Backend::Vmx);
        assert!(number == 4 && text.contains("Suberror: 1"), "{text}");
        let untried = Facts {
            guest: None,
            ..facts(INTEL)
        };
        assert_eq!(step(&untried, Backend::Vmx).0, 4);
    }

    #[test]
    fn emulated_lanes_lack_nothing() {
        for &lane in Lane::ALL {
            assert_eq!(
                lack(&facts(HOLLOW), lane).is_none(),
                lane.platform().is_emulated(),
                "{lane}"
            );
        }
    }
}
