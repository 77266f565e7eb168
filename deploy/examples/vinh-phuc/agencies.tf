# The agencies on the dedicated network: 24 of the province, 9 districts, 136 communes, 169 together. An id never
# changes; what people read is the display name. A number belongs to its agency for good, since it decides its VLAN and
# addresses.
locals {
  offices = {
    "vp-ubnd"        = { number = 1, size = "host", name = "Văn phòng Ủy ban nhân dân tỉnh" }
    "vp-dbqh-hdnd"   = { number = 2, size = "office", name = "Văn phòng Đoàn đại biểu Quốc hội và Hội đồng nhân dân tỉnh" }
    "so-noi-vu"      = { number = 3, size = "office", name = "Sở Nội vụ" }
    "so-tu-phap"     = { number = 4, size = "office", name = "Sở Tư pháp" }
    "so-khdt"        = { number = 5, size = "office", name = "Sở Kế hoạch và Đầu tư" }
    "so-tai-chinh"   = { number = 6, size = "office", name = "Sở Tài chính" }
    "so-cong-thuong" = { number = 7, size = "office", name = "Sở Công Thương" }
    "so-nnptnt"      = { number = 8, size = "office", name = "Sở Nông nghiệp và Phát triển nông thôn" }
    "so-gtvt"        = { number = 9, size = "office", name = "Sở Giao thông vận tải" }
    "so-xay-dung"    = { number = 10, size = "office", name = "Sở Xây dựng" }
    "so-tnmt"        = { number = 11, size = "office", name = "Sở Tài nguyên và Môi trường" }
    "so-tttt"        = { number = 12, size = "office", name = "Sở Thông tin và Truyền thông" }
    "so-ldtbxh"      = { number = 13, size = "office", name = "Sở Lao động - Thương binh và Xã hội" }
    "so-vhttdl"      = { number = 14, size = "office", name = "Sở Văn hóa, Thể thao và Du lịch" }
    "so-khcn"        = { number = 15, size = "office", name = "Sở Khoa học và Công nghệ" }
    "so-gddt"        = { number = 16, size = "host", name = "Sở Giáo dục và Đào tạo" }
    "so-y-te"        = { number = 17, size = "host", name = "Sở Y tế" }
    "thanh-tra"      = { number = 18, size = "office", name = "Thanh tra tỉnh" }
    "ban-dan-toc"    = { number = 19, size = "office", name = "Ban Dân tộc" }
    "bql-kcn"        = { number = 20, size = "office", name = "Ban Quản lý các khu công nghiệp" }
    "dai-ptth"       = { number = 21, size = "office", name = "Đài Phát thanh và Truyền hình" }
    "cong-ttgtdt"    = { number = 22, size = "office", name = "Cổng Thông tin - Giao tiếp điện tử" }
    "tt-hcc"         = { number = 23, size = "host", name = "Trung tâm Phục vụ hành chính công" }
    "tt-httt"        = { number = 24, size = "centre", name = "Trung tâm Hạ tầng thông tin" }
  }

  districts = {
    "vinh-yen"   = { number = 25, kind = "thành phố", name = "Vĩnh Yên" }
    "phuc-yen"   = { number = 26, kind = "thành phố", name = "Phúc Yên" }
    "binh-xuyen" = { number = 27, kind = "huyện", name = "Bình Xuyên" }
    "lap-thach"  = { number = 28, kind = "huyện", name = "Lập Thạch" }
    "song-lo"    = { number = 29, kind = "huyện", name = "Sông Lô" }
    "tam-dao"    = { number = 30, kind = "huyện", name = "Tam Đảo" }
    "tam-duong"  = { number = 31, kind = "huyện", name = "Tam Dương" }
    "vinh-tuong" = { number = 32, kind = "huyện", name = "Vĩnh Tường" }
    "yen-lac"    = { number = 33, kind = "huyện", name = "Yên Lạc" }
  }

  # Of every district those communes that are connected already.
  connected = { for district in keys(local.districts) : district => contains(var.districts, district) ? local.communes[district] : {} }

  # What an agency may hold itself. What it gives to agencies below comes on top, where it is given.
  quotas = {
    commune = { vms = 2, vcpus = 4, memory_mib = 8192, disk_mib = 65536, addresses = 4 }
    office  = { vms = 8, vcpus = 16, memory_mib = 65536, disk_mib = 1048576, addresses = 16 }
    host    = { vms = 24, vcpus = 96, memory_mib = 393216, disk_mib = 8388608, addresses = 64 }
    centre  = { vms = 60, vcpus = 240, memory_mib = 1048576, disk_mib = 20971520, addresses = 120, "flavor_class/database" = 30 }
    station = { vms = 1, vcpus = 1, memory_mib = 2048, disk_mib = 20480, addresses = 1 }
    unit    = { vms = 6, vcpus = 16, memory_mib = 65536, disk_mib = 2097152, addresses = 8 }
  }
}
