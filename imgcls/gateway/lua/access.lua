-- Runs before anything else of a request: who asks, whether they may, and until when an answer is of use.
--
--   rules   the virtual host's filter context: is_open, has_jwt, longest_ms, and what changes whenever keys do
--   keys    the virtual host's metadata: each key under its SHA-256, so that one look-up does, however many there are
--   model   the route's metadata
--
-- A later filter stops whatever got no name in x-imgcls-client, which is set last.
local KEY_PREFIX = "imk_"
local LONGEST_KEY = 256 -- longer ones are not even hashed
local BOUNDLESS = "${BOUNDLESS}"
local METHODS = { GET = true, HEAD = true, OPTIONS = true, POST = true, PUT = true }

-- Envoy copies all of the metadata for whoever asks for it: a microsecond a key. So each thread keeps them as its own.
local known = {}
local known_version = nil

local function read_keys(handle, version)
  if known_version ~= version then
    local found = {}
    for hash, entry in pairs(handle:virtualHost():metadata()) do
      found[hash] = entry
    end
    known, known_version = found, version
  end
  return known
end

-- Returns an API key, and any other Bearer token; nil for what is not there.
local function credentials(headers)
  local key = headers:get("x-api-key")
  if key then
    return key, nil
  end
  local scheme, token = (headers:get("authorization") or ""):match("^%s*(%a+)%s+(%S+)%s*$")
  if not scheme or scheme:lower() ~= "bearer" then
    return nil, nil
  elseif token:sub(1, #KEY_PREFIX) == KEY_PREFIX then
    return token, nil
  end
  return nil, token
end

local function may_use(entry, model)
  for _, name in ipairs(entry.models) do
    if name == model then
      return true
    end
  end
  return false
end

-- Returns the key's name, or nil and why not. Timing tells nothing of use: what is compared is a hash, which nobody can
-- steer towards that of a key that they do not have.
local function check_key(handle, keys, key)
  local entry = #key <= LONGEST_KEY and keys[sha256(key)] or nil
  if not entry then
    return nil, refusal("401", "key_unknown", "this API key is not known here")
  elseif entry.is_revoked then
    return nil, refusal("401", "key_revoked", "the API key " .. entry.name .. " has been revoked")
  elseif entry.expires_ms and handle:timestamp() >= entry.expires_ms then
    return nil, refusal("401", "key_expired", "the API key " .. entry.name .. " has expired")
  elseif entry.models and not may_use(entry, handle:metadata():get("model")) then
    local models = table.concat(entry.models, ", ")
    return nil, refusal("403", "key_not_allowed", "the API key " .. entry.name .. " is for these models only: " .. models)
  end
  return entry.name
end

local function set_deadline(handle, headers, longest_ms)
  local asked_ms = tonumber(headers:get("x-timeout-ms") or "")
  local timeout_ms = longest_ms
  if asked_ms and asked_ms >= 1 and asked_ms < longest_ms then
    timeout_ms = math.floor(asked_ms)
  end
  headers:replace("x-envoy-upstream-rq-timeout-ms", string.format("%d", timeout_ms))
  headers:replace("x-imgcls-deadline-ms", string.format("%.0f", handle:timestamp() + timeout_ms))
end

-- Returns a refusal, or nil where the request may go on.
local function judge(handle)
  local headers = handle:headers()
  if not METHODS[headers:get(":method")] then
    local refused = refusal("405", "method_not_allowed", "this method is not served")
    refused.headers.allow = "GET, HEAD, OPTIONS, POST, PUT"
    return refused
  end
  local rules = handle:filterContext()
  local key, token = credentials(headers)
  set_deadline(handle, headers, rules:get("longest_ms"))
  headers:remove("x-api-key")
  if key then
    local name, refused = check_key(handle, read_keys(handle, rules:get("keys")), key)
    if refused then
      return refused
    end
    headers:remove("authorization")
    headers:replace("x-imgcls-client", name)
  elseif token and rules:get("has_jwt") then
    headers:replace("authorization", "Bearer " .. token) -- for the next filter, which is strict about the scheme's case
  elseif rules:get("is_open") then
    headers:remove("authorization")
    headers:replace("x-imgcls-client", "anonymous")
  elseif token then
    return refusal("401", "key_unknown", "this Bearer token is no API key")
  else
    return refusal("401", "key_missing", "no API key; send it as X-API-Key or as Authorization: Bearer")
  end
end

function envoy_on_request(handle)
  decide(handle, judge)
end

-- The limiter knows when there is room again; the listener's default of a second is for all other refusals. Where
-- nothing limits a client, the headers on limits are those of a bucket that nobody can empty, and say nothing.
function envoy_on_response(handle)
  local headers = handle:headers()
  if headers:get("x-ratelimit-limit") == BOUNDLESS then
    for _, name in ipairs({ "limit", "remaining", "reset" }) do
      headers:remove("x-ratelimit-" .. name)
    end
  elseif headers:get(":status") == "429" and headers:get("x-ratelimit-reset") then
    headers:replace("retry-after", headers:get("x-ratelimit-reset"))
  end
end
