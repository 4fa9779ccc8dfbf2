//! `verifier`: loads every program of the embedded object and prints the log of the kernel's
//! verifier. aya discards that log on success, so it is read here.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use aya::{Ebpf, maps::Map};
use aya_obj::{
    Object, ProgramSection,
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type},
};
use comfy_table::{Table, presets};

/// `BPF_LOG_STATS` of the kernel's bpf_verifier.h: the sums alone.
const LOG_STATS: u32 = 4;

/// The verifier's statistics of a program.
#[derive(Debug, PartialEq, Eq)]
struct Stats {
    processed: u64,
    stack: String,
    states: u64,
}

/// Prints the table.
pub fn report() -> anyhow::Result<ExitCode> {
    let maps = Ebpf::load(overlay::datapath::OBJECT).context("make the maps")?;
    let object = linked(&maps)?;
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["program", "instructions", "verified", "states", "stack"]);
    let mut names: Vec<&String> = object.programs.keys().collect();
    names.sort();
    for name in names {
        let program = &object.programs[name];
        let code = &object.functions[&program.function_key()].instructions;
        let stats = load(program, code).with_context(|| format!("load {name}"))?;
        let Stats { processed, stack, states } = stats;
        table.add_row([
            name.clone(),
            code.len().to_string(),
            processed.to_string(),
            states.to_string(),
            stack,
        ]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// The object with the maps' descriptors and its calls in place.
fn linked(maps: &Ebpf) -> anyhow::Result<Object> {
    let mut object = Object::parse(overlay::datapath::OBJECT).context("read the object")?;
    let text = object.functions.keys().map(|(section, _)| *section).collect();
    let declared = object.maps.clone();
    let descriptors = declared
        .iter()
        .map(|(name, map)| Ok((name.as_str(), descriptor(maps, name)?, map)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    object.relocate_maps(descriptors.into_iter(), &text).context("link the maps")?;
    object.relocate_calls(&text).context("link the calls")?;
    Ok(object)
}

fn descriptor(maps: &Ebpf, name: &str) -> anyhow::Result<RawFd> {
    let map = maps.map(name).with_context(|| format!("no map {name}"))?;
    let data = match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::HashOfMaps(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data)
        | Map::PerfEventArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => data,
        other => bail!("the map {name} is of a kind not known here: {other:?}"),
    };
    Ok(data.fd().as_fd().as_raw_fd())
}

fn kind(section: &ProgramSection) -> anyhow::Result<(bpf_prog_type, u32)> {
    match section {
        ProgramSection::SchedClassifier => Ok((bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0)),
        ProgramSection::Xdp { .. } => {
            Ok((bpf_prog_type::BPF_PROG_TYPE_XDP, bpf_attach_type::BPF_XDP as u32))
        }
        ProgramSection::CgroupSockAddr { attach_type } => {
            let attach_type = bpf_attach_type::from(*attach_type);
            Ok((bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, attach_type as u32))
        }
        ProgramSection::CgroupSock { attach_type } => {
            let attach_type = bpf_attach_type::from(*attach_type);
            Ok((bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK, attach_type as u32))
        }
        other => bail!("programs of the section {other:?} are not known here"),
    }
}

fn load(program: &aya_obj::Program, code: &[bpf_insn]) -> anyhow::Result<Stats> {
    let (program_type, attach_type) = kind(&program.section)?;
    let mut log = vec![0_u8; 1 << 20];
    // SAFETY: a union of structures of integers, for which zero is a valid value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: BPF_PROG_LOAD reads this member of the union, all of which is zero.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = program_type as u32;
    load.expected_attach_type = attach_type;
    load.insns = code.as_ptr() as u64;
    load.insn_cnt = u32::try_from(code.len())?;
    load.license = program.license.as_ptr() as u64;
    load.log_level = LOG_STATS;
    load.log_buf = log.as_mut_ptr() as u64;
    load.log_size = u32::try_from(log.len())?;
    // SAFETY: `attr` and the targets of its pointers live through the call and have the stated
    // lengths.
    let result = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_bpf,
            bpf_cmd::BPF_PROG_LOAD as nix::libc::c_long,
            &raw mut attr,
            size_of::<bpf_attr>(),
        )
    };
    let error = io::Error::last_os_error();
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let said = String::from_utf8_lossy(&log[..end]);
    let Ok(fd @ 0..) = i32::try_from(result) else {
        bail!("{error}; the verifier says: {said}");
    };
    // SAFETY: the command returned a new descriptor that nothing else owns.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    parse(&said).with_context(|| format!("the verifier says in words not known here: {said}"))
}

/// `stack depth 320+0+64`, one number for each function, and
/// `processed 900 insns (limit ..) .. total_states 60 peak_states ..`.
fn parse(said: &str) -> Option<Stats> {
    let line = |start: &str| said.lines().find_map(|line| line.strip_prefix(start));
    let depths: Vec<&str> =
        line("stack depth ")?.split('+').map(str::trim).filter(|depth| *depth != "0").collect();
    let mut sums = line("processed ")?.split_whitespace();
    let processed = sums.next()?.parse().ok()?;
    let states = sums.skip_while(|word| *word != "total_states").nth(1)?.parse().ok()?;
    let stack = if depths.is_empty() { "0".to_owned() } else { depths.join("+") };
    Some(Stats { processed, stack, states })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_sums_are_read() {
        let said = "verification time 812 usec\nstack depth 320+0+64\nprocessed 900 insns (limit \
                    1000000) max_states_per_insn 4 total_states 60 peak_states 60 mark_read 12\n";
        let stats = Stats { processed: 900, stack: "320+64".to_owned(), states: 60 };
        assert_eq!(parse(said), Some(stats));
        assert_eq!(parse("processed 900 insns"), None);
    }
}
