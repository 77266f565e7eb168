# The Department of Health: 12 units of the province, 9 district centres, and 138 commune stations below these, which are
# the 159 that the personal health records serve.
locals {
  health_units = {
    "bvdk-tinh"     = { number = 201, name = "Bệnh viện Đa khoa tỉnh" }
    "bvdk-phuc-yen" = { number = 202, name = "Bệnh viện Đa khoa khu vực Phúc Yên" }
    "bv-san-nhi"    = { number = 203, name = "Bệnh viện Sản - Nhi" }
    "bv-yhct"       = { number = 204, name = "Bệnh viện Y dược cổ truyền" }
    "bv-phcn"       = { number = 205, name = "Bệnh viện Phục hồi chức năng" }
    "bv-tam-than"   = { number = 206, name = "Bệnh viện Tâm thần" }
    "bv-phoi"       = { number = 207, name = "Bệnh viện Phổi" }
    "ksbt"          = { number = 208, name = "Trung tâm Kiểm soát bệnh tật" }
    "kiem-nghiem"   = { number = 209, name = "Trung tâm Kiểm nghiệm" }
    "phap-y"        = { number = 210, name = "Trung tâm Pháp y" }
    "giam-dinh"     = { number = 211, name = "Trung tâm Giám định y khoa" }
    "attp"          = { number = 212, name = "Chi cục An toàn vệ sinh thực phẩm" }
  }

  # Stations that are not a commune's only one. These two are made up.
  second_stations = {
    "phuc-yen" = { "ngoc-thanh-2" = { name = "Ngọc Thanh, cơ sở 2" } }
    "tam-dao"  = { "dao-tru-2" = { name = "Đạo Trù, cơ sở 2" } }
  }

  stations = {
    for district, communes in local.connected : district => merge(
      { for id, commune in communes : id => { name = commune.name } },
      length(communes) > 0 ? lookup(local.second_stations, district, {}) : {},
    )
  }

  # What the department gives to those below it, and its own.
  count_of_stations = length(flatten([for stations in values(local.stations) : keys(stations)]))

  quota_of_health = {
    for measure, own in local.quotas.host : measure => (
      own
      + length(local.health_units) * local.quotas.unit[measure]
      + length(local.districts) * local.quotas.office[measure]
      + local.count_of_stations * local.quotas.station[measure]
    )
  }
}
