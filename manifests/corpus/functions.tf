tamdao {
  stack = "functions"
}

locals {
  a = join(",", sort(distinct(concat(["b", "a"], split("/", "a/b/c")))))
  b = jsondecode("{\"a\": [1, 2, {\"b\": null}]}").a[2].b
  c = jsonencode({ x = 1, y = [true, false] })
  d = cidrhost("10.1.0.0/16", 5)
  e = substr("Vĩnh Phúc", -4, 4)
  f = replace("aaa", "a", "bb")
  g = lookup({ a = 1 }, "b", 2)
  h = zipmap(["a", "b"], [1, 2])
  i = base64decode(base64encode("é"))
  j = [for k, v in { a = 1, b = 2 } : "${k}=${v}" if v > 1]
  k = { for x in ["a", "b", "a"] : x => x... }
  l = -5 % 3 + 7 / 2 * (1 - 2)
  m = true ? !false : 1 == 1
  n = "%{if 1 < 2}yes%{else}no%{endif} $${kept} %%{kept}"
  o = element(slice([1, 2, 3, 4], 1, 3), 5)
  p = range(3)[*]
}

resource "vm" "x" {
  vcpus      = length(keys(local.h))
  memory_mib = 512 + floor(1.5) + ceil(1.5) + abs(-1)
  labels     = { a = trimspace(lower("  A ")), b = local.f }
}
