# The communes, by district. The names are real; a number belongs to its commune for good and is never given again,
# since it decides its VLAN and addresses.
locals {
  communes = {
    "vinh-yen" = {
      "dong-tam"   = { number = 34, name = "Đồng Tâm" }
      "hoi-hop"    = { number = 35, name = "Hội Hợp" }
      "khai-quang" = { number = 36, name = "Khai Quang" }
      "lien-bao"   = { number = 37, name = "Liên Bảo" }
      "ngo-quyen"  = { number = 38, name = "Ngô Quyền" }
      "dong-da"    = { number = 39, name = "Đống Đa" }
      "tich-son"   = { number = 40, name = "Tích Sơn" }
      "dinh-trung" = { number = 41, name = "Định Trung" }
      "thanh-tru"  = { number = 42, name = "Thanh Trù" }
    }
    "phuc-yen" = {
      "hung-vuong" = { number = 43, name = "Hùng Vương" }
      "trung-trac" = { number = 44, name = "Trưng Trắc" }
      "trung-nhi"  = { number = 45, name = "Trưng Nhị" }
      "phuc-thang" = { number = 46, name = "Phúc Thắng" }
      "xuan-hoa"   = { number = 47, name = "Xuân Hòa" }
      "dong-xuan"  = { number = 48, name = "Đồng Xuân" }
      "nam-viem"   = { number = 49, name = "Nam Viêm" }
      "tien-chau"  = { number = 50, name = "Tiền Châu" }
      "cao-minh"   = { number = 51, name = "Cao Minh" }
      "ngoc-thanh" = { number = 52, name = "Ngọc Thanh" }
    }
    "binh-xuyen" = {
      "huong-canh" = { number = 53, name = "Hương Canh" }
      "gia-khanh"  = { number = 54, name = "Gia Khánh" }
      "thanh-lang" = { number = 55, name = "Thanh Lãng" }
      "ba-hien"    = { number = 56, name = "Bá Hiến" }
      "dao-duc"    = { number = 57, name = "Đạo Đức" }
      "huong-son"  = { number = 58, name = "Hương Sơn" }
      "phu-xuan"   = { number = 59, name = "Phú Xuân" }
      "quat-luu"   = { number = 60, name = "Quất Lưu" }
      "son-loi"    = { number = 61, name = "Sơn Lôi" }
      "tam-hop"    = { number = 62, name = "Tam Hợp" }
      "tan-phong"  = { number = 63, name = "Tân Phong" }
      "thien-ke"   = { number = 64, name = "Thiện Kế" }
      "trung-my"   = { number = 65, name = "Trung Mỹ" }
    }
    "lap-thach" = {
      "lap-thach" = { number = 66, name = "Lập Thạch" }
      "hoa-son"   = { number = 67, name = "Hoa Sơn" }
      "bac-binh"  = { number = 68, name = "Bắc Bình" }
      "ban-gian"  = { number = 69, name = "Bàn Giản" }
      "dinh-chu"  = { number = 70, name = "Đình Chu" }
      "dong-ich"  = { number = 71, name = "Đồng Ích" }
      "hop-ly"    = { number = 72, name = "Hợp Lý" }
      "lien-hoa"  = { number = 73, name = "Liên Hòa" }
      "lien-son"  = { number = 74, name = "Liễn Sơn" }
      "ngoc-my"   = { number = 75, name = "Ngọc Mỹ" }
      "quang-son" = { number = 76, name = "Quang Sơn" }
      "son-dong"  = { number = 77, name = "Sơn Đông" }
      "thai-hoa"  = { number = 78, name = "Thái Hòa" }
      "tien-lu"   = { number = 79, name = "Tiên Lữ" }
      "tu-du"     = { number = 80, name = "Tử Du" }
      "trieu-de"  = { number = 81, name = "Triệu Đề" }
      "van-quan"  = { number = 82, name = "Văn Quán" }
      "van-truc"  = { number = 83, name = "Vân Trục" }
      "xuan-hoa"  = { number = 84, name = "Xuân Hòa" }
      "xuan-loi"  = { number = 85, name = "Xuân Lôi" }
    }
    "song-lo" = {
      "tam-son"      = { number = 86, name = "Tam Sơn" }
      "bach-luu"     = { number = 87, name = "Bạch Lưu" }
      "cao-phong"    = { number = 88, name = "Cao Phong" }
      "don-nhan"     = { number = 89, name = "Đôn Nhân" }
      "dong-que"     = { number = 90, name = "Đồng Quế" }
      "dong-thinh"   = { number = 91, name = "Đồng Thịnh" }
      "duc-bac"      = { number = 92, name = "Đức Bác" }
      "hai-luu"      = { number = 93, name = "Hải Lựu" }
      "lang-cong"    = { number = 94, name = "Lãng Công" }
      "nhan-dao"     = { number = 95, name = "Nhân Đạo" }
      "nhao-son"     = { number = 96, name = "Nhạo Sơn" }
      "nhu-thuy"     = { number = 97, name = "Như Thụy" }
      "phuong-khoan" = { number = 98, name = "Phương Khoan" }
      "quang-yen"    = { number = 99, name = "Quang Yên" }
      "tan-lap"      = { number = 100, name = "Tân Lập" }
      "tu-yen"       = { number = 101, name = "Tứ Yên" }
      "yen-thach"    = { number = 102, name = "Yên Thạch" }
    }
    "tam-dao" = {
      "hop-chau"   = { number = 103, name = "Hợp Châu" }
      "dai-dinh"   = { number = 104, name = "Đại Đình" }
      "tam-dao"    = { number = 105, name = "Tam Đảo" }
      "bo-ly"      = { number = 106, name = "Bồ Lý" }
      "dao-tru"    = { number = 107, name = "Đạo Trù" }
      "ho-son"     = { number = 108, name = "Hồ Sơn" }
      "minh-quang" = { number = 109, name = "Minh Quang" }
      "tam-quan"   = { number = 110, name = "Tam Quan" }
      "yen-duong"  = { number = 111, name = "Yên Dương" }
    }
    "tam-duong" = {
      "hop-hoa"   = { number = 112, name = "Hợp Hòa" }
      "an-hoa"    = { number = 113, name = "An Hòa" }
      "dao-tu"    = { number = 114, name = "Đạo Tú" }
      "dong-tinh" = { number = 115, name = "Đồng Tĩnh" }
      "duy-phien" = { number = 116, name = "Duy Phiên" }
      "hoang-dan" = { number = 117, name = "Hoàng Đan" }
      "hoang-hoa" = { number = 118, name = "Hoàng Hoa" }
      "hoang-lau" = { number = 119, name = "Hoàng Lâu" }
      "hop-thinh" = { number = 120, name = "Hợp Thịnh" }
      "huong-dao" = { number = 121, name = "Hướng Đạo" }
      "kim-long"  = { number = 122, name = "Kim Long" }
      "thanh-van" = { number = 123, name = "Thanh Vân" }
      "van-hoi"   = { number = 124, name = "Vân Hội" }
    }
    "vinh-tuong" = {
      "vinh-tuong"   = { number = 125, name = "Vĩnh Tường" }
      "tho-tang"     = { number = 126, name = "Thổ Tang" }
      "tu-trung"     = { number = 127, name = "Tứ Trưng" }
      "an-tuong"     = { number = 128, name = "An Tường" }
      "binh-duong"   = { number = 129, name = "Bình Dương" }
      "bo-sao"       = { number = 130, name = "Bồ Sao" }
      "cao-dai"      = { number = 131, name = "Cao Đại" }
      "chan-hung"    = { number = 132, name = "Chấn Hưng" }
      "dai-dong"     = { number = 133, name = "Đại Đồng" }
      "kim-xa"       = { number = 134, name = "Kim Xá" }
      "lung-hoa"     = { number = 135, name = "Lũng Hòa" }
      "ly-nhan"      = { number = 136, name = "Lý Nhân" }
      "nghia-hung"   = { number = 137, name = "Nghĩa Hưng" }
      "ngu-kien"     = { number = 138, name = "Ngũ Kiên" }
      "phu-da"       = { number = 139, name = "Phú Đa" }
      "tam-phuc"     = { number = 140, name = "Tam Phúc" }
      "tan-phu"      = { number = 141, name = "Tân Phú" }
      "tan-tien"     = { number = 142, name = "Tân Tiến" }
      "thuong-trung" = { number = 143, name = "Thượng Trưng" }
      "tuan-chinh"   = { number = 144, name = "Tuân Chính" }
      "van-xuan"     = { number = 145, name = "Vân Xuân" }
      "viet-xuan"    = { number = 146, name = "Việt Xuân" }
      "vinh-ninh"    = { number = 147, name = "Vĩnh Ninh" }
      "vinh-son"     = { number = 148, name = "Vĩnh Sơn" }
      "vinh-thinh"   = { number = 149, name = "Vĩnh Thịnh" }
      "vu-di"        = { number = 150, name = "Vũ Di" }
      "yen-binh"     = { number = 151, name = "Yên Bình" }
      "yen-lap"      = { number = 152, name = "Yên Lập" }
    }
    "yen-lac" = {
      "yen-lac"      = { number = 153, name = "Yên Lạc" }
      "binh-dinh"    = { number = 154, name = "Bình Định" }
      "dai-tu"       = { number = 155, name = "Đại Tự" }
      "dong-cuong"   = { number = 156, name = "Đồng Cương" }
      "dong-van"     = { number = 157, name = "Đồng Văn" }
      "hong-chau"    = { number = 158, name = "Hồng Châu" }
      "hong-phuong"  = { number = 159, name = "Hồng Phương" }
      "lien-chau"    = { number = 160, name = "Liên Châu" }
      "nguyet-duc"   = { number = 161, name = "Nguyệt Đức" }
      "tam-hong"     = { number = 162, name = "Tam Hồng" }
      "te-lo"        = { number = 163, name = "Tề Lỗ" }
      "trung-ha"     = { number = 164, name = "Trung Hà" }
      "trung-kien"   = { number = 165, name = "Trung Kiên" }
      "trung-nguyen" = { number = 166, name = "Trung Nguyên" }
      "van-tien"     = { number = 167, name = "Văn Tiến" }
      "yen-dong"     = { number = 168, name = "Yên Đồng" }
      "yen-phuong"   = { number = 169, name = "Yên Phương" }
    }
  }
}
