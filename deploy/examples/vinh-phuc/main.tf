# The cloud of Vĩnh Phúc province: what everybody shares stands here, all else in modules, one table for each.
tamdao {
  stack = "vinh-phuc"
}

variable "image" {
  type        = string
  default     = "debian-12"
  description = "An image of the cloud that every machine starts from: tamdao image import debian-12 --file ..."
}

variable "bridge" {
  type        = string
  default     = "br-guests"
  description = "The nodes' bridge that carries the VLANs"
}

variable "districts" {
  type        = list(string)
  default     = ["binh-xuyen", "lap-thach", "phuc-yen", "song-lo", "tam-dao", "tam-duong", "vinh-tuong", "vinh-yen", "yen-lac"]
  description = "Districts whose communes and health stations are connected already"
}

# Sizes. The class lets a quota count database servers by themselves.
resource "flavor" "size" {
  for_each = {
    small    = { vcpus = 1, memory_mib = 2048, class = "" }
    medium   = { vcpus = 2, memory_mib = 8192, class = "" }
    large    = { vcpus = 4, memory_mib = 16384, class = "" }
    database = { vcpus = 4, memory_mib = 16384, class = "database" }
  }
  name       = each.key
  vcpus      = each.value.vcpus
  memory_mib = each.value.memory_mib
  class      = each.value.class
}

# Disks on the storage network, seen by all nodes: who has them is restarted elsewhere when its node is lost.
resource "pool" "san" {
  display_name = "Hệ thống lưu trữ dùng chung"
  kind         = "dir"
  path         = "/san"
  shared       = true
}

# Disks of the nodes' own, for databases, which copy themselves to their twins.
resource "pool" "local" {
  display_name = "Đĩa trong máy chủ"
  kind         = "dir"
  path         = "/var/lib/tamdao/local"
}

# Where the national platforms are reached: the document exchange, the payment gateway, the population database.
resource "network" "national" {
  display_name = "Mạng truyền số liệu chuyên dùng, kết nối quốc gia"
  vlan {
    bridge = var.bridge
    tag    = 900
  }
  subnets {
    cidr    = "10.96.0.0/24"
    gateway = "10.96.0.1"
  }
}

module "agencies" {
  source    = "./agencies"
  bridge    = var.bridge
  image     = var.image
  offices   = local.offices
  districts = local.districts
  communes  = local.connected
  quotas    = local.quotas
  health    = local.quota_of_health
  flavor    = flavor.size["small"].name
  pool      = pool.san.name
}

module "health" {
  source     = "./health"
  bridge     = var.bridge
  image      = var.image
  department = module.agencies.offices["so-y-te"]
  units      = local.health_units
  centres    = local.districts
  stations   = local.stations
  quotas     = local.quotas
  flavor     = flavor.size["medium"].name
  pool       = pool.san.name
}

module "databases" {
  source    = "./databases"
  image     = var.image
  databases = local.databases
  hosts     = { centre = module.agencies.offices["tt-httt"], office = module.agencies.offices["vp-ubnd"] }
  networks = module.agencies.networks
  national = network.national.name
  flavor   = flavor.size["database"].name
  pool     = pool.local.name
}

module "services" {
  source   = "./services"
  image    = var.image
  services = local.services
  networks = module.agencies.networks
  national = network.national.name
  flavors  = { for size, flavor in flavor.size : size => flavor.name }
  pool     = pool.san.name
}

output "agencies" {
  value = module.agencies.count
}

output "health_units" {
  value = module.health.count
}

output "databases_by_place" {
  value = { for place in distinct(values(local.databases)[*].place) : place => length([for base in values(local.databases) : base if base.place == place]) }
}

# Where the controllers send the audit records.
output "audit_receivers" {
  value = module.services.receivers
}
