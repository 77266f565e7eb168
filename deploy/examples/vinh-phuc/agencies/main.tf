# Agencies of three kinds: offices of the province, districts, and communes below their districts. Each has a network of
# its own, which no other agency can use, and a machine for its portal.
variable "offices" {
  type = map(object({ number = number, size = string, name = string }))
}

variable "districts" {
  type = map(object({ number = number, kind = string, name = string }))
}

variable "communes" {
  type        = map(map(object({ number = number, name = string })))
  description = "By district"
}

variable "quotas" {}

variable "health" {
  description = "The quota of the Department of Health, which has a tree below it"
}

variable "bridge" {}

variable "image" {}

variable "flavor" {}

variable "pool" {}

locals {
  # One row for each commune, under an id of its own: two of them are called Xuân Hòa.
  rows = merge([
      for district, communes in var.communes : {
        for id, commune in communes : "${district}-${id}" => {
          number   = commune.number
          district = district
          name     = "${commune.name}, ${var.districts[district].name}"
        }
      }
    ]...)

  # A district has what its communes have, and its own.
  given = {
    for district, communes in var.communes : district => {
      for measure, own in var.quotas.office : measure => own + length(communes) * var.quotas.commune[measure]
    }
  }

  numbers = merge(
    { for id, office in var.offices : id => office.number },
    { for id, district in var.districts : id => district.number },
    { for id, row in local.rows : id => row.number },
  )
}

resource "agency" "office" {
  for_each     = var.offices
  name         = each.key
  display_name = each.value.name
  labels       = { level = "province" }
  quota = each.key == "so-y-te" ? var.health : var.quotas[each.value.size]
}

resource "agency" "district" {
  for_each     = var.districts
  name         = each.key
  display_name = "Ủy ban nhân dân ${each.value.kind} ${each.value.name}"
  labels       = { level = "district" }
  quota = local.given[each.key]
}

resource "agency" "commune" {
  for_each     = local.rows
  name         = each.key
  display_name = "Ủy ban nhân dân ${each.value.name}"
  labels       = { level = "commune" }
  parent = agency.district[each.value.district].name
  quota  = var.quotas.commune
}

# The dedicated network: one VLAN and 254 addresses for each agency.
resource "network" "own" {
  for_each   = local.numbers
  name       = "own"
  agency     = each.key
  depends_on = [agency.office, agency.district, agency.commune]
  vlan {
    bridge = var.bridge
    tag    = 1000 + each.value
  }
  subnets {
    cidr    = cidrsubnet("10.64.0.0/12", 12, each.value)
    gateway = cidrhost(cidrsubnet("10.64.0.0/12", 12, each.value), 1)
  }
}

resource "vm" "portal" {
  for_each     = network.own
  name         = "portal"
  agency       = each.value.agency
  display_name = "Cổng thông tin"
  flavor       = var.flavor
  labels       = { service = "portal" }
  run = "always"
  disks {
    create {
      image    = var.image
      size_mib = 20480
      pool     = var.pool
    }
  }
  interfaces {
    network = each.value.name
  }
}

output "offices" {
  value = { for id, office in agency.office : id => office.name }
}

output "networks" {
  value = { for id, network in network.own : id => network.name }
}

output "count" {
  value = length(local.numbers)
}
