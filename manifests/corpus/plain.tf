# A small stack that applies.
tamdao {
  stack = "plain"
}

resource "agency" "health" {
  display_name = "Sở Y tế"
  quota        = { vms = 10, vcpus = 40 }
}

resource "flavor" "mini" {
  vcpus      = 1
  memory_mib = 512
}

resource "network" "lan" {
  bridge {
    bridge = "br0"
  }
}

resource "volume" "data" {
  agency   = agency.health.name
  size_mib = 64
}

resource "vm" "db" {
  agency = agency.health.name
  flavor = flavor.mini.name
  disks {
    create {
      image    = "debian-12"
      size_mib = 2048
    }
  }
  disks {
    volume = volume.data.name
  }
  interfaces {
    network = network.lan.name
  }
}
