//! `tamdao vm create`: flags and file become a `Vm` of the contract, and the command waits until it runs.

use anyhow::Result;
use tamdao_proto::v1::{DirectBoot, Firmware, Graphics, OsType, RunPolicy, Vm, VmPhase, VmSpec};

use super::standard;
use crate::app::App;
use crate::args::{FirmwareArg, GraphicsArg, OsTypeArg, VmCreateArgs};
use crate::given;
use crate::problem::{ExitStatus, Problem};
use crate::wait::{Goal, Verdict, until};

pub async fn create(app: &App, args: &VmCreateArgs) -> Result<ExitStatus> {
    let (place, mut vm) = standard::begin::<Vm>(app, &args.new, false)?;
    let spec = vm.spec.get_or_insert_default();
    fill(spec, args)?;
    if args.new.file.is_none() && spec.flavor.is_empty() && (spec.vcpus == 0 || spec.memory_mib == 0) {
        return Err(Problem::usage(format!("vm {} has no size", place.name))
            .hint("give --flavor NAME (see `tamdao flavor list`), or --vcpus N and --memory SIZE")
            .into());
    }
    if args.new.file.is_none() && spec.disks.is_empty() && spec.direct_boot.is_none() {
        return Err(Problem::usage(format!("vm {} has nothing to boot from", place.name))
            .hint("give --image NAME (see `tamdao image list`), --volume, --iso or --kernel")
            .into());
    }
    let Some(vm) = standard::create(app, &place, vm, args.new.dry_run).await? else {
        return Ok(ExitStatus::Done);
    };
    if args.wait.no_wait {
        return standard::done(app, &vm, "accepted");
    }
    let stays_off = vm.spec.as_ref().is_some_and(|spec| spec.run() == RunPolicy::Stopped);
    let vm = until(app, vm, &args.wait, Goal::State(&|vm| judge(vm, stays_off, args.wait_ready))).await?;
    standard::done(app, &vm, "")
}

fn judge(vm: &Vm, stays_off: bool, guest: bool) -> Verdict {
    let status = vm.status.clone().unwrap_or_default();
    match status.phase() {
        VmPhase::Running if guest && !status.guest.is_some_and(|guest| guest.ready) => Verdict::Going,
        VmPhase::Running => Verdict::Reached,
        VmPhase::Stopped if stays_off => Verdict::Reached,
        // A guest that shut itself down before anybody looked has run.
        VmPhase::Stopped if !guest && status.started_time.is_some() => Verdict::Reached,
        VmPhase::Failed | VmPhase::Deleting => Verdict::Lost,
        _ => Verdict::Going,
    }
}

/// What the flags say; what they leave out stays as the file has it.
fn fill(spec: &mut VmSpec, args: &VmCreateArgs) -> Result<()> {
    if let Some(flavor) = &args.flavor {
        flavor.clone_into(&mut spec.flavor);
        (spec.vcpus, spec.memory_mib) = (0, 0);
    }
    if args.vcpus.is_some() || args.memory.is_some() {
        spec.flavor.clear();
    }
    spec.vcpus = args.vcpus.unwrap_or(spec.vcpus);
    spec.memory_mib = args.memory.unwrap_or(spec.memory_mib);
    let disks = given::disks(args.image.as_deref(), &args.disks, &args.volumes, &args.isos)?;
    if !disks.is_empty() {
        spec.disks = disks;
    }
    if !args.networks.is_empty() {
        spec.interfaces =
            args.networks.iter().map(|network| given::interface(network)).collect::<Result<_>>()?;
    }
    spec.ssh_keys.extend(given::ssh_keys(&args.ssh_keys)?);
    if let Some(file) = &args.user_data {
        spec.user_data = given::text(file)?;
    }
    if let Some(hostname) = &args.hostname {
        hostname.clone_into(&mut spec.hostname);
    }
    if let Some(run) = args.run {
        spec.set_run(run.into());
    }
    match args.firmware {
        Some(FirmwareArg::Bios) => spec.set_firmware(Firmware::Bios),
        Some(FirmwareArg::Uefi) => spec.set_firmware(Firmware::Uefi),
        // Secure boot is UEFI's; asking for it says so.
        None if args.secure_boot => spec.set_firmware(Firmware::Uefi),
        None => {}
    }
    match args.os_type {
        Some(OsTypeArg::Linux) => spec.set_os_type(OsType::Linux),
        Some(OsTypeArg::Windows) => spec.set_os_type(OsType::Windows),
        None => {}
    }
    match args.graphics {
        Some(GraphicsArg::None) => spec.set_graphics(Graphics::None),
        Some(GraphicsArg::Vnc) => spec.set_graphics(Graphics::Vnc),
        None => {}
    }
    spec.secure_boot |= args.secure_boot;
    spec.tpm |= args.tpm;
    if let Some(kernel) = &args.kernel {
        spec.direct_boot = Some(DirectBoot {
            kernel: kernel.clone(),
            initrd: args.initrd.clone().unwrap_or_default(),
            command_line: args.cmdline.clone().unwrap_or_default(),
        });
    }
    if let Some(node) = &args.pin_node {
        node.clone_into(&mut spec.node);
    }
    spec.numa_cells = args.numa_cells.unwrap_or(spec.numa_cells);
    super::vm::set_place(spec, &args.place)?;
    spec.delete_protection |= args.delete_protection;
    Ok(())
}
