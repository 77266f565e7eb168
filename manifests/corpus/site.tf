tamdao {
  stack = "site"
}

variable "replicas" {
  type    = number
  default = 2
  validation {
    condition     = var.replicas > 0 && var.replicas < 10
    error_message = "between 1 and 9, not ${var.replicas}"
  }
}

variable "sites" {
  type = map(object({ vlan = number, bridge = optional(string, "br0") }))
  default = {
    north = { vlan = 10 }
    south = { vlan = 20, bridge = "br1" }
  }
}

variable "password" {
  type      = string
  default   = "s3cret"
  sensitive = true
}

locals {
  tags  = merge({ tier = "front" }, { for key, site in var.sites : "site-${key}" => tostring(site.vlan) })
  names = [for at in range(var.replicas) : format("web-%02d", at) if at != 7]
  keys  = flatten([["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@desk"], compact(["", ""])])
}

resource "flavor" "mini" {
  vcpus      = 1
  memory_mib = var.replicas == null ? 512 : 1024
}

resource "network" "lan" {
  for_each = var.sites
  name     = "lan-${each.key}"
  vlan {
    bridge = each.value.bridge
    tag    = each.value.vlan
  }
  subnets {
    cidr = cidrsubnet("10.0.0.0/8", 8, each.value.vlan)
  }
}

resource "vm" "web" {
  count      = length(local.names)
  name       = local.names[count.index]
  flavor     = flavor.mini.name
  labels     = local.tags
  ssh_keys   = local.keys
  user_data  = <<-EOT
    #cloud-config
    password: ${var.password}
    %{for name in local.names}# ${upper(name)} %{endfor}
  EOT
  depends_on = [network.lan]
  disks {
    create {
      image    = "debian-12"
      size_mib = max(2048, var.replicas * 1024)
    }
  }
  interfaces {
    network = network.lan["north"].name
  }
  lifecycle {
    prevent_destroy = false
    ignore_changes  = [labels]
  }
}

output "first" {
  value = vm.web[*].id
}
