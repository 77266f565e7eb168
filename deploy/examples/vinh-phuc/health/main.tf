# The tree of the Department of Health. A station is an agency with a name, a place in the tree and a small quota; it
# has no machine, since it works with the personal health records of the department.
variable "department" {}

variable "units" {
  type = map(object({ number = number, name = string }))
}

variable "centres" {
  description = "Districts, each of which has a health centre"
}

variable "stations" {
  type        = map(map(object({ name = string })))
  description = "By district"
}

variable "quotas" {}

variable "bridge" {}

variable "image" {}

variable "flavor" {}

variable "pool" {}

locals {
  rows = merge([
      for district, stations in var.stations : {
        for id, station in stations : "tyt-${district}-${id}" => { district = district, name = "${station.name}, ${var.centres[district].name}" }
      }
    ]...)
}

resource "agency" "unit" {
  for_each     = var.units
  name         = each.key
  display_name = each.value.name
  labels       = { level = "health" }
  parent = var.department
  quota  = var.quotas.unit
}

resource "agency" "centre" {
  for_each     = var.centres
  name         = "ttyt-${each.key}"
  display_name = "Trung tâm Y tế ${each.value.kind} ${each.value.name}"
  labels       = { level = "health" }
  parent = var.department
  quota  = { for measure, own in var.quotas.office : measure => own + length(var.stations[each.key]) * var.quotas.station[measure] }
}

resource "agency" "station" {
  for_each     = local.rows
  name         = each.key
  display_name = "Trạm Y tế ${each.value.name}"
  labels       = { level = "health" }
  parent = agency.centre[each.value.district].name
  quota  = var.quotas.station
}

resource "network" "own" {
  for_each = agency.unit
  name     = "own"
  agency   = each.value.name
  vlan {
    bridge = var.bridge
    tag    = 1000 + var.units[each.key].number
  }
  subnets {
    cidr    = cidrsubnet("10.64.0.0/12", 12, var.units[each.key].number)
    gateway = cidrhost(cidrsubnet("10.64.0.0/12", 12, var.units[each.key].number), 1)
  }
}

resource "vm" "his" {
  for_each     = agency.unit
  name         = "his"
  agency       = each.value.name
  display_name = "Hệ thống thông tin y tế"
  flavor       = var.flavor
  run          = "always"
  priority     = 300
  disks {
    create {
      image    = var.image
      size_mib = 102400
      pool     = var.pool
    }
  }
  interfaces {
    network = network.own[each.key].name
  }
}

output "count" {
  value = length(var.units) + length(var.centres) + length(local.rows)
}
