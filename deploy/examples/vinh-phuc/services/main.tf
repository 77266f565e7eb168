# Services as tables of tiers. Their disks lie in the shared pool, so whatever is lost with a node is restarted elsewhere,
# the highest priority first; none of them is placed on the hardware of 2013.
variable "services" {}

variable "networks" {
  type = map(string)
}

variable "national" {}

variable "flavors" {
  type = map(string)
}

variable "image" {}

variable "pool" {}

locals {
  tiers = merge([
      for service, about in var.services : {
        for tier, of in about.tiers : "${service}-${tier}" => merge(of, { service = service, agency = about.agency, name = about.name, priority = about.priority })
      }
    ]...)

  machines = merge([
      for tier, of in local.tiers : {
        for number in range(of.count) : "${tier}-${number + 1}" => merge(of, { tier = tier })
      }
    ]...)
}

resource "placement_group" "tier" {
  for_each = local.tiers
  name     = each.key
  agency   = each.value.agency
  # One node holds half of a tier at most, so that it fits also when half of the nodes are gone.
  rules {
    kind    = "apart"
    at_most = ceil(each.value.count / 2)
  }
  rules {
    kind      = "apart"
    by        = "rack"
    at_most   = ceil(each.value.count / 2)
    preferred = true
  }
  rules {
    kind      = "apart"
    by        = "feed"
    at_most   = ceil(each.value.count / 2)
    preferred = true
  }
}

resource "vm" "machine" {
  for_each     = local.machines
  name         = each.key
  agency       = each.value.agency
  display_name = each.value.name
  flavor       = var.flavors[each.value.size]
  labels                = { service = each.value.service }
  run              = "always"
  priority         = each.value.priority
  placement_groups = [placement_group.tier[each.value.tier].name]
  forbidden_node_labels = { hardware = "2013" }
  user_data = each.value.user_data
  disks {
    create {
      image    = var.image
      size_mib = 102400
      pool     = var.pool
    }
  }
  interfaces = concat(
    [{ network = var.networks[each.value.agency] }],
    each.value.national ? [{ network = var.national }] : [],
  )
}

output "receivers" {
  value = { for name, vm in vm.machine : name => vm.status.interfaces[0].addresses[0] if startswith(name, "soc-") }
}
