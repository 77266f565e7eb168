# shellcheck shell=bash
# What both guest images are made of: Debian's cloud kernel, and a disk that boots itself by BIOS
# and by UEFI. No loop device and no mount is needed anywhere.

# find_kernel: sets KERNEL_VERSION, KERNEL_IMAGE and KERNEL_MODULES (…/lib/modules/VERSION) to
# Debian's newest cloud kernel. The installed one is taken if there is one; else the package is
# only unpacked into the cache, because installing it would make it the boot loader's choice on a
# real host, and it has no drivers for real hardware.
find_kernel() {
  local root="" package version
  KERNEL_VERSION=$(installed_kernel "")
  if [ -z "$KERNEL_VERSION" ]; then
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ {print $2; exit}')
    [ -n "$package" ] || fail "apt knows no package linux-image-cloud-amd64" "run apt-get update, and see that Debian's main component is among the apt sources"
    version=$(apt-cache show --no-all-versions "$package" | awk '$1 == "Version:" {print $2; exit}')
    # shellcheck disable=SC2317 # called by `cached`
    unpack_kernel() {
      step "download $package $version" apt-get -o APT::Sandbox::User=root download "$package=$version"
      step "unpack it" dpkg-deb -x "$(echo ./*.deb)" .
      rm -f ./*.deb
      step "list its modules" depmod -b . "${package#linux-image-}"
    }
    root=$(cached kernel "$(printf '%s' "$version" | tr -c 'a-zA-Z0-9.-' _)" unpack_kernel)
    KERNEL_VERSION=$(installed_kernel "$root")
  fi
  KERNEL_IMAGE="$root/boot/vmlinuz-$KERNEL_VERSION"
  KERNEL_MODULES="$root/lib/modules/$KERNEL_VERSION"
}

installed_kernel() {
  local image version found=""
  while read -r image; do
    version=${image##*/vmlinuz-}
    [ -e "$1/lib/modules/$version/modules.dep" ] && found=$version
  done < <(find "$1/boot" -name 'vmlinuz-*-cloud-amd64' 2>/dev/null | sort -V)
  printf '%s' "$found"
}

# module_files NAME...: the files of these modules and of all they need, in loading order,
# relative to KERNEL_MODULES; what is built into the kernel is left out.
module_files() {
  awk -v names="$*" '
    FNR == NR { builtin[base($1)] = 1; next }
    { sub(":", "", $1); line[base($1)] = $0 }
    END {
      count = split(names, wanted, " ")
      for (i = 1; i <= count; i++) {
        name = wanted[i]; gsub("-", "_", name)
        if (name in builtin) continue
        if (!(name in line)) { print "no kernel module named " wanted[i] > "/dev/stderr"; exit 1 }
        for (j = split(line[name], files, " "); j >= 1; j--)
          if (!(files[j] in seen)) { seen[files[j]] = 1; print files[j] }
      }
    }
    function base(path) { sub(".*/", "", path); sub("[.]ko$", "", path); gsub("-", "_", path); return path }
  ' "$KERNEL_MODULES/modules.builtin" "$KERNEL_MODULES/modules.dep"
}

# make_initrd DIR FILE: packs a directory as an initramfs.
make_initrd() {
  (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) | gzip -9n >"$2"
}

# make_boot_disk OUT.raw KERNEL INITRD CMDLINE ESP_MIB TYPE PART.raw
# A GPT disk: an EFI system partition with systemd-boot for UEFI and, in the same FAT, syslinux
# for BIOS; both start the same kernel. PART.raw becomes the second partition, of GPT type TYPE.
make_boot_disk() {
  local out=$1 kernel=$2 initrd=$3 cmdline=$4 esp_mib=$5 type=$6 part=$7 part_mib esp
  part_mib=$(($(stat -c %s "$part") / 1048576))
  esp=$out.esp
  truncate -s "${esp_mib}M" "$esp"
  mkfs.vfat -n ESP "$esp" >/dev/null
  printf 'timeout 0\ndefault tamdao.conf\n' >"$out.loader"
  printf 'title tamdao\nlinux /kernel\ninitrd /initrd\noptions %s\n' "$cmdline" >"$out.entry"
  printf 'DEFAULT tamdao\nPROMPT 0\nLABEL tamdao\n  LINUX /kernel\n  INITRD /initrd\n  APPEND %s\n' "$cmdline" >"$out.syslinux"
  mmd -i "$esp" ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries ::/syslinux
  mcopy -i "$esp" /usr/lib/systemd/boot/efi/systemd-bootx64.efi ::/EFI/BOOT/BOOTX64.EFI
  mcopy -i "$esp" "$out.loader" ::/loader/loader.conf
  mcopy -i "$esp" "$out.entry" ::/loader/entries/tamdao.conf
  mcopy -i "$esp" "$out.syslinux" ::/syslinux/syslinux.cfg
  mcopy -i "$esp" "$kernel" ::/kernel
  mcopy -i "$esp" "$initrd" ::/initrd
  rm -f "$out"
  truncate -s $((1 + esp_mib + part_mib + 1))M "$out"
  sfdisk --quiet "$out" <<TABLE
label: gpt
start=1MiB, size=${esp_mib}MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, attrs="LegacyBIOSBootable", name=esp
start=$((1 + esp_mib))MiB, size=${part_mib}MiB, type=$type, name=data
TABLE
  dd if="$esp" of="$out" bs=1M seek=1 conv=notrunc,sparse status=none
  dd if="$part" of="$out" bs=1M seek=$((1 + esp_mib)) conv=notrunc,sparse status=none
  syslinux --install --offset 1048576 --directory syslinux "$out"
  dd if=/usr/lib/syslinux/mbr/gptmbr.bin of="$out" bs=440 count=1 conv=notrunc status=none
  rm -f "$esp" "$out.loader" "$out.entry" "$out.syslinux"
}

# recipe_key FILE... : a hash of these files and of the packages and kernel that go into an image.
recipe_key() {
  {
    cat "$@"
    dpkg-query -W -f '${Package} ${Version}\n' busybox-static syslinux-common systemd-boot-efi 2>/dev/null
    printf '%s\n' "$KERNEL_VERSION"
    stat -c %s "$KERNEL_IMAGE"
  } | sha256sum | cut -c1-12
}
