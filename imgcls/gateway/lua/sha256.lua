-- SHA-256 (FIPS 180-4) in LuaJIT: returns the digest of a string in hexadecimal. Envoy's Lua has no hash of its own.
local bit = require("bit")
local band, bnot, bxor, ror, rshift, tobit = bit.band, bit.bnot, bit.bxor, bit.ror, bit.rshift, bit.tobit

local ROUNDS = {
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
}

local function padded(text)
  local bits = #text * 8
  local zeros = (55 - #text) % 64
  local length = { string.char(0, 0, 0) } -- five bytes of the length are enough: a header is no terabyte
  for shift = 4, 0, -1 do
    length[#length + 1] = string.char(math.floor(bits / 2 ^ (8 * shift)) % 256)
  end
  return text .. "\128" .. string.rep("\0", zeros) .. table.concat(length)
end

local function schedule(text, start)
  local words = {}
  for index = 1, 16 do
    local b1, b2, b3, b4 = text:byte(start + index * 4 - 4, start + index * 4 - 1)
    words[index] = tobit(((b1 * 256 + b2) * 256 + b3) * 256 + b4)
  end
  for index = 17, 64 do
    local early, late = words[index - 15], words[index - 2]
    local sigma0 = bxor(ror(early, 7), ror(early, 18), rshift(early, 3))
    local sigma1 = bxor(ror(late, 17), ror(late, 19), rshift(late, 10))
    words[index] = tobit(words[index - 16] + sigma0 + words[index - 7] + sigma1)
  end
  return words
end

local function compress(state, words)
  local a, b, c, d, e, f, g, h = unpack(state)
  for index = 1, 64 do
    local choice = bxor(band(e, f), band(bnot(e), g))
    local sum1 = bxor(ror(e, 6), ror(e, 11), ror(e, 25))
    local first = tobit(h + sum1 + choice + ROUNDS[index] + words[index])
    local majority = bxor(band(a, b), band(a, c), band(b, c))
    local sum0 = bxor(ror(a, 2), ror(a, 13), ror(a, 22))
    a, b, c, d, e, f, g, h = tobit(first + sum0 + majority), a, b, c, tobit(d + first), e, f, g
  end
  local worked = { a, b, c, d, e, f, g, h }
  for index = 1, 8 do
    state[index] = tobit(state[index] + worked[index])
  end
end

local function sha256(text)
  local state = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
  }
  local whole = padded(text)
  for start = 1, #whole, 64 do
    compress(state, schedule(whole, start))
  end
  local digits = {}
  for index = 1, 8 do
    digits[index] = bit.tohex(state[index])
  end
  return table.concat(digits)
end
