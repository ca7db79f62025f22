-- Keeps an answer's body for the access log, where a rollout compares versions; on for recorded models only.
local LONGEST = 16384

function envoy_on_response(handle)
  local length = handle:headers():get("content-length")
  local size = length and tonumber(length)
  if not size or size > LONGEST then
    return
  end
  local body = handle:body()
  if body ~= nil and body:length() > 0 then
    handle:streamInfo():dynamicMetadata():set("imgcls", "answer", body:getBytes(0, body:length()))
  end
end
