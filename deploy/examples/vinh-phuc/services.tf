# The services that all agencies share, each with its tiers. A tier's machines are kept apart by node, and by rack and
# feed as far as there is room; those that talk to national platforms have a second interface.
locals {
  services = {
    "lgsp" = {
      agency   = "tt-httt"
      name     = "Nền tảng tích hợp, chia sẻ dữ liệu (LGSP)"
      priority = 900
      tiers = {
        "gateway" = { count = 2, size = "large", national = false, user_data = "" }
        # Trục liên thông văn bản quốc gia
        "documents" = { count = 2, size = "medium", national = true, user_data = "" }
        # Nền tảng thanh toán trực tuyến
        "payments" = { count = 2, size = "medium", national = true, user_data = "" }
      }
    }
    "tthc" = {
      agency   = "tt-hcc"
      name     = "Hệ thống thông tin giải quyết thủ tục hành chính (TTHC)"
      priority = 800
      tiers = {
        "web" = { count = 3, size = "medium", national = false, user_data = "" }
        "app" = { count = 2, size = "large", national = false, user_data = "" }
      }
    }
    # 746 thousand records, for 159 health units.
    "hssk" = {
      agency   = "so-y-te"
      name     = "Hồ sơ sức khỏe cá nhân"
      priority = 800
      tiers = {
        "web" = { count = 2, size = "medium", national = false, user_data = "" }
        "app" = { count = 3, size = "large", national = false, user_data = "" }
      }
    }
    "hoc-truc-tuyen" = {
      agency   = "so-gddt"
      name     = "Dạy và học trực tuyến"
      priority = 200
      tiers = {
        "web"   = { count = 2, size = "medium", national = false, user_data = "" }
        "media" = { count = 4, size = "large", national = false, user_data = "" }
      }
    }
    "soc" = {
      agency   = "tt-httt"
      name     = "Trung tâm giám sát an toàn, an ninh mạng (SOC)"
      priority = 900
      tiers = {
        "receiver" = { count = 2, size = "medium", national = false, user_data = file("soc.yaml") }
      }
    }
  }
}
