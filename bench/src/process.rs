//! What programs cost: CPU and memory of process trees, from /proc.

use std::collections::HashMap;

/// One line of /proc/PID/stat, as far as it is needed.
struct Stat {
    parent: u32,
    name: String,
    ticks: u64,
}

fn read_stat(pid: u32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name may hold blanks and brackets, so the fields are counted from its last bracket.
    let (head, rest) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, name, ticks: number(11)? + number(12)? })
}

/// `root` and all its descendants that live now.
fn tree(root: u32) -> Vec<(u32, Stat)> {
    let mut by_parent: HashMap<u32, Vec<(u32, Stat)>> = HashMap::new();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some(stat) = read_stat(pid) {
            by_parent.entry(stat.parent).or_default().push((pid, stat));
        }
    }
    let mut out: Vec<(u32, Stat)> = read_stat(root).map(|s| (root, s)).into_iter().collect();
    let mut next = 0;
    while let Some(&(pid, _)) = out.get(next) {
        out.extend(by_parent.remove(&pid).unwrap_or_default());
        next += 1;
    }
    out
}

/// CPU seconds (user and system) that the process trees have used so far.
pub(crate) fn cpu_seconds(roots: &[u32]) -> f64 {
    let ticks: u64 = roots.iter().flat_map(|r| tree(*r)).map(|(_, s)| s.ticks).sum();
    ticks as f64 / ticks_per_second()
}

fn ticks_per_second() -> f64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64
}

/// Resident memory of the process trees in MiB, without the shells that guard them.
pub(crate) fn rss_mib(roots: &[u32]) -> f64 {
    let programs = roots.iter().flat_map(|r| tree(*r)).filter(|(_, s)| s.name != "sh" && s.name != "cat");
    programs.filter_map(|(pid, _)| rss_kib(pid)).sum::<f64>() / 1024.0
}

fn rss_kib(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Share of CPU time that the hypervisor took, between two calls.
#[derive(Clone, Copy)]
pub(crate) struct Steal {
    stolen: u64,
    total: u64,
}

impl Steal {
    pub(crate) fn now() -> Self {
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<u64> = text
            .lines()
            .next()
            .unwrap_or("")
            .split_whitespace()
            .skip(1)
            .filter_map(|f| f.parse().ok())
            .collect();
        Self { stolen: fields.get(7).copied().unwrap_or(0), total: fields.iter().take(8).sum() }
    }

    pub(crate) fn share_since(self, before: Self) -> f64 {
        let total = self.total.saturating_sub(before.total).max(1);
        self.stolen.saturating_sub(before.stolen) as f64 / total as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let text = "12 (a) b (c)) S 7 12 12 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 5 6 7";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.parent, stat.name.as_str(), stat.ticks), (7, "a) b (c)", 200));
    }

    #[test]
    fn a_busy_child_is_counted_with_its_parent() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done & wait; sleep 20"])
            .spawn()
            .unwrap();
        let start = std::time::Instant::now();
        let mut cpu = 0.0;
        while cpu < 0.05 && start.elapsed().as_secs() < 20 {
            cpu = cpu_seconds(&[child.id()]);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(cpu >= 0.05, "{cpu}");
    }

    #[test]
    fn this_process_has_memory() {
        assert!(rss_mib(&[std::process::id()]) > 0.5);
    }
}
