# Databases in pairs. The two of a pair are never in one rack nor on one power feed, so no single failure takes both.
# They copy themselves to each other: so their disks are the nodes' own, nobody restarts one elsewhere, and maintenance
# shuts it down while its twin goes on.
variable "databases" {
  type = map(object({ place = string, national = bool, name = string }))
}

variable "hosts" {
  type        = map(string)
  description = "The agency of each place that is hosted here; databases of other places are only listed"
}

variable "networks" {
  type = map(string)
}

variable "national" {}

variable "image" {}

variable "flavor" {}

variable "pool" {}

locals {
  hosted = { for id, base in var.databases : id => base if contains(keys(var.hosts), base.place) }

  twins = merge([
      for id, base in local.hosted : {
        for twin in ["a", "b"] : "${id}-${twin}" => merge(base, { id = id, agency = var.hosts[base.place] })
      }
    ]...)
}

resource "placement_group" "pair" {
  for_each = local.hosted
  name     = "db-${each.key}"
  agency   = var.hosts[each.value.place]
  rules {
    kind = "apart"
    by   = "rack"
  }
  rules {
    kind = "apart"
    by   = "feed"
  }
}

resource "vm" "twin" {
  for_each     = local.twins
  name         = "db-${each.key}"
  agency       = each.value.agency
  display_name = "CSDL ${each.value.name}"
  flavor       = var.flavor
  labels                = { database = each.value.id }
  run              = "always"
  priority         = 700
  placement_groups = [placement_group.pair[each.value.id].name]
  forbidden_node_labels = { hardware = "2013" }
  on_node_loss = "stay"
  maintenance  = "shut_down"
  disks {
    create {
      image    = var.image
      size_mib = 20480
      pool     = var.pool
    }
  }
  disks {
    create {
      size_mib       = 204800
      pool           = var.pool
      keep_on_delete = true
    }
  }
  # The one that is linked with the national population database has a second interface for that.
  interfaces = concat(
    [{ network = var.networks[each.value.agency] }],
    each.value.national ? [{ network = var.national }] : [],
  )
}
