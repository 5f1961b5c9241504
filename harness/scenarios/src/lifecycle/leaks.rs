// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a thousand hooks leave behind: nothing.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use super::{check_version, counts_on};
use crate::{Context, Failure, Scenario, Transport, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "lifecycle::hook_again_1000_times",
    "HOOK at once after UNHOOK, 1,000 times: slab objects and threads are as many as before",
    hook_again,
)
.over(Transport::Socket)];

const CYCLES: u32 = 1000;

/// Cycles before the first count, so that what is allocated once is there.
const WARM_UP: u32 = 20;

/// A cache that lost an object in each cycle would have grown by [`CYCLES`]; what the machine does by itself is far less.
const NOISE: u64 = CYCLES as u64 / 4;

/// How long the kernel may take to give back what it gives back later, in L1's time: kfree_rcu() collects for 5 s.
const SETTLE: Duration = Duration::from_secs(20);

/// What the kernel holds.
#[derive(Clone, Debug)]
struct Held {
    /// Objects in use by slab cache.
    slab: BTreeMap<String, u64>,
    threads: usize,
    vmalloc_bytes: u64,
}

impl Held {
    fn now() -> Result<Self, Failure> {
        // What waits for RCU and what lies in per-CPU lists counts as in use: have both emptied. The parameter asks for an rcu_barrier().
        fs::write("/sys/module/rcutree/parameters/do_rcu_barrier", "1")?;
        for cache in fs::read_dir("/sys/kernel/slab")? {
            // Aliases and caches that are being made cannot be shrunk; their counts are taken as they are.
            let _ = fs::write(cache?.path().join("shrink"), "1");
        }
        Ok(Self {
            slab: slab_objects(&fs::read_to_string("/proc/slabinfo")?),
            threads: kernel_threads()?,
            vmalloc_bytes: vmalloc_bytes(&fs::read_to_string("/proc/vmallocinfo")?),
        })
    }
}

impl Held {
    /// What there is more of now, apart from noise.
    fn grown(&self) -> Result<Vec<String>, Failure> {
        let now = Self::now()?;
        let mut grown = Vec::new();
        for (cache, &objects) in &now.slab {
            let growth = objects.saturating_sub(self.slab.get(cache).copied().unwrap_or(0));
            // The addresses of stacks of threads that have ended are given back by the thousand; vmalloc's bytes show the rest.
            if growth > NOISE && cache != "vmap_area" {
                grown.push(format!("slab cache {cache} by {growth}"));
            }
        }
        let bytes = now.vmalloc_bytes.saturating_sub(self.vmalloc_bytes);
        if bytes > NOISE * 4096 {
            grown.push(format!("vmalloc by {bytes} bytes"));
        }
        if now.threads > self.threads {
            grown.push(format!("threads by {}", now.threads - self.threads));
        }
        Ok(grown)
    }
}

/// Objects in use of each cache, by /proc/slabinfo.
fn slab_objects(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .skip(2)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        })
        .collect()
}

/// Bytes of virtually mapped kernel memory, by /proc/vmallocinfo; without what is freed and waits to be unmapped.
fn vmalloc_bytes(text: &str) -> u64 {
    text.lines()
        .filter(|line| !line.contains("unpurged"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// Threads that have to do with introspection.
fn kernel_threads() -> Result<usize, Failure> {
    let mut count = 0;
    for entry in fs::read_dir("/proc")? {
        // A process may end between being listed and being read.
        let comm = fs::read_to_string(entry?.path().join("comm")).unwrap_or_default();
        if comm.starts_with("kvmi-") {
            count += 1;
        }
    }
    Ok(count)
}

fn hook_again(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let vm = context.running_vm("counter", 2)?;
    context.stage("warm up", Duration::from_secs(30));
    let threads_at_first = kernel_threads()?;
    // What is not seen at all cannot be seen to grow.
    let wire = context.bare_hook(&vm, 0)?;
    check_eq!(kernel_threads()?, threads_at_first + 1, "threads while hooked");
    check_eq!(vm.unhook()?, 0, "errno of UNHOOK");
    drop(wire);
    vm.hook_cycles(WARM_UP)?;
    let before = Held::now()?;
    check!(
        !before.slab.is_empty() && before.vmalloc_bytes > 0,
        "nothing is counted"
    );
    check_eq!(before.threads, threads_at_first, "threads after {WARM_UP} cycles");
    context.stage("1,000 cycles", Duration::from_secs(240));
    vm.hook_cycles(CYCLES)?;
    context.stage("count", Duration::from_secs(60));
    let begin = Instant::now();
    let mut grown = before.grown()?;
    while !grown.is_empty() && begin.elapsed() < SETTLE {
        grown = before.grown()?;
    }
    check!(grown.is_empty(), "grew over {CYCLES} cycles: {}", grown.join(", "));
    counts_on(context, &vm)?;
    check_version(&mut context.bare_hook(&vm, 0)?)?;
    vm.exit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabinfo_is_read() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> ...\nkmalloc-64 1300 1344 64 64 1 : tunables\n";
        assert_eq!(slab_objects(text), BTreeMap::from([("kmalloc-64".to_owned(), 1300)]));
    }

    #[test]
    fn vmallocinfo_is_read() {
        let text =
            "0xffff-0xffff    8192 gen_pool_add\n0xffff-0xffff   20480 pcpu\n0xffff-0xffff   20480 unpurged vm_area\n";
        assert_eq!(vmalloc_bytes(text), 28672);
    }
}
