# The province's 25 databases, by who holds them: 13 in its information infrastructure centre and 2 at the office of the
# People's Committee, which are hosted here; 5 that ministries delegate and 5 on a provider's infrastructure, which are
# listed so that all are in one table.
locals {
  databases = {
    "dan-cu"       = { place = "centre", national = true, name = "Dữ liệu dân cư của tỉnh, kết nối CSDL quốc gia về dân cư" }
    "can-bo"       = { place = "centre", national = false, name = "Cán bộ, công chức, viên chức" }
    "suc-khoe"     = { place = "centre", national = false, name = "Hồ sơ sức khỏe cá nhân" }
    "giao-duc"     = { place = "centre", national = false, name = "Giáo dục và đào tạo" }
    "dat-dai"      = { place = "centre", national = false, name = "Đất đai" }
    "nong-nghiep"  = { place = "centre", national = false, name = "Nông nghiệp" }
    "xay-dung"     = { place = "centre", national = false, name = "Quy hoạch và xây dựng" }
    "giao-thong"   = { place = "centre", national = false, name = "Hạ tầng giao thông" }
    "lao-dong"     = { place = "centre", national = false, name = "Lao động và việc làm" }
    "khcn"         = { place = "centre", national = false, name = "Khoa học và công nghệ" }
    "du-lich"      = { place = "centre", national = false, name = "Văn hóa và du lịch" }
    "cong-nghiep"  = { place = "centre", national = false, name = "Khu, cụm công nghiệp" }
    "dung-chung"   = { place = "centre", national = false, name = "Danh mục dùng chung" }
    "van-ban"      = { place = "office", national = false, name = "Văn bản và điều hành" }
    "nhiem-vu"     = { place = "office", national = false, name = "Theo dõi nhiệm vụ" }
    "ho-tich"      = { place = "ministry", national = false, name = "Hộ tịch" }
    "doanh-nghiep" = { place = "ministry", national = false, name = "Đăng ký doanh nghiệp" }
    "tai-san-cong" = { place = "ministry", national = false, name = "Tài sản công" }
    "gia"          = { place = "ministry", national = false, name = "Giá" }
    "ho-ngheo"     = { place = "ministry", national = false, name = "Hộ nghèo" }
    "phan-anh"     = { place = "provider", national = false, name = "Phản ánh hiện trường" }
    "hop"          = { place = "provider", national = false, name = "Họp không giấy tờ" }
    "truong-hoc"   = { place = "provider", national = false, name = "Quản lý trường học" }
    "kham-benh"    = { place = "provider", national = false, name = "Khám chữa bệnh" }
    "luu-tru"      = { place = "provider", national = false, name = "Lưu trữ điện tử" }
  }
}
