//! The machine that the figures are about.

use std::fs;

use serde::Serialize;

/// A machine, as far as it matters to the figures.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// The processor's model.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// As Rust names it: `x86_64`, `aarch64`.
    pub architecture: &'static str,
    /// Those of `aes`, `vaes` and `avx512` (its F, BW, DQ and VL) on x86-64, and of `aes` on aarch64, that the
    /// processor has and the kernel allows.
    pub instruction_sets: Vec<&'static str>,
}

impl Host {
    /// This one.
    pub fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease");
        Self {
            cpu: model(&read("/proc/cpuinfo")).unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: if kernel.trim().is_empty() { "unknown".into() } else { kernel.trim().into() },
            architecture: std::env::consts::ARCH,
            instruction_sets: instruction_sets(),
        }
    }

    /// Whether the processor has this instruction set; `None` where that is not looked at.
    pub fn has(&self, name: &str) -> Option<bool> {
        let looked_at: &[&str] = match self.architecture {
            "x86_64" => &["aes", "vaes", "avx512"],
            "aarch64" => &["aes"],
            _ => &[],
        };
        looked_at.contains(&name).then(|| self.instruction_sets.contains(&name))
    }
}

/// From `/proc/cpuinfo`: the first processor's name, or its designer's number and its own where it has none, as on Arm.
fn model(cpuinfo: &str) -> Option<String> {
    let field = |name: &str| {
        let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let found =
            lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned()).next();
        found.filter(|value| !value.is_empty())
    };
    field("model name").or_else(|| {
        let (designer, part) = (field("CPU implementer")?, field("CPU part")?);
        Some(format!("implementer {designer}, part {part}"))
    })
}

#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
    let all = [("aes", has!("aes")), ("vaes", has!("vaes")), ("avx512", avx512)];
    all.into_iter().filter_map(|(name, is_there)| is_there.then_some(name)).collect()
}

#[cfg(target_arch = "aarch64")]
fn instruction_sets() -> Vec<&'static str> {
    if std::arch::is_aarch64_feature_detected!("aes") { vec!["aes"] } else { Vec::new() }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instruction_sets() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_found() {
        let x86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9R14\n\n\
                   processor\t: 1\nmodel name\t: another\n";
        assert_eq!(model(x86).unwrap(), "AMD EPYC 9R14");
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: 0xd40\n";
        assert_eq!(model(arm).unwrap(), "implementer 0x41, part 0xd40");
        assert_eq!(model("processor\t: 0\nmodel name\t:\n"), None);
    }

    #[test]
    fn this_machine_is_known() {
        let host = Host::this();
        assert!(host.cores > 0 && !host.cpu.is_empty());
        assert_ne!(host.kernel, "unknown");
        // /proc/cpuinfo says the same in its own words.
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
        let told = cpuinfo.split_whitespace().any(|word| word == "aes");
        assert_eq!(host.has("aes").unwrap_or(told), told);
        assert_eq!(host.has("mmx"), None);
    }
}
