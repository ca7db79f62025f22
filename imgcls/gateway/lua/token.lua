-- Runs after Envoy has verified a JSON Web Token: its subject becomes the client's name.
local VERIFIER = "envoy.filters.http.jwt_authn"
local LONGEST_SUBJECT = 128

local function judge(handle)
  local headers = handle:headers()
  if headers:get("x-imgcls-client") then
    return nil
  end
  local verified = handle:streamInfo():dynamicMetadata():get(VERIFIER)
  local claims = verified and verified.claims
  if not claims then
    return refusal("401", "token_missing", "no token has been verified")
  end
  local subject = claims.sub
  -- It goes into a header and a log, so it has to be plain.
  if type(subject) ~= "string" or #subject > LONGEST_SUBJECT or not subject:find("^[%w._@:|/+=-]+$") then
    local expected = "expected 1 to " .. LONGEST_SUBJECT .. " letters, digits and ._@:|/+=-"
    return refusal("401", "token_subject", "the token's subject cannot be a client's name; " .. expected)
  end
  headers:remove("authorization")
  headers:replace("x-imgcls-client", "jwt:" .. subject)
end

function envoy_on_request(handle)
  decide(handle, judge)
end
