-- What the scripts that decide share. The listener puts the message into JSON, and into gRPC's own form over gRPC.
local function refuse(handle, refusal)
  handle:streamInfo():dynamicMetadata():set("imgcls", "refused", refusal.reason) -- for the access log
  handle:respond(refusal.headers, refusal.message)
end

-- Why a request is turned away: `reason` is for machines, `message` for people.
local function refusal(status, reason, message)
  local headers = { [":status"] = status }
  if status == "401" then
    local error = reason == "key_missing" and "" or ', error="invalid_token"'
    headers["www-authenticate"] = 'Bearer realm="imgcls"' .. error
  end
  return { headers = headers, reason = reason, message = message }
end

-- Runs `judge`, which returns a refusal or nil. Envoy lets a request through where a script fails: this does not.
local function decide(handle, judge)
  local is_done, refused = pcall(judge, handle)
  if not is_done then
    handle:logErr("a request is refused as access control failed: " .. tostring(refused))
    refused = refusal("503", "access_failed", "whether this request may pass could not be told; ask again")
  end
  if refused then
    refuse(handle, refused)
  end
end
