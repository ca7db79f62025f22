// One stretch of load, closed (CONNECTIONS at a time) or open (RATE arrivals a second); run by imgcls/tuning/load.py.
import http from "k6/http";
import { check } from "k6";

const images = JSON.parse(open(__ENV.IMAGES)).map((path) => open(path, "b"));
const headers = { "Content-Type": "application/octet-stream" };
if (__ENV.TOKEN) headers.Authorization = `Bearer ${__ENV.TOKEN}`;
const connections = Number(__ENV.CONNECTIONS);
const common = { duration: __ENV.DURATION, gracefulStop: __ENV.TIMEOUT };
// Arrivals a minute, because k6 takes whole numbers only.
const open_loop = { executor: "constant-arrival-rate", rate: Math.round(Number(__ENV.RATE) * 60), timeUnit: "1m" };

export const options = {
  scenarios: {
    load: __ENV.RATE
      ? { ...common, ...open_loop, preAllocatedVUs: connections, maxVUs: connections }
      : { ...common, executor: "constant-vus", vus: connections },
  },
  summaryTrendStats: ["med", `p(${__ENV.PERCENTILE})`, "p(99)"],
  noConnectionReuse: false,
};

export default function () {
  const image = images[(__VU * 7919 + __ITER) % images.length];
  check(http.post(__ENV.URL, image, { headers, timeout: __ENV.TIMEOUT }), { "is 200": (answer) => answer.status === 200 });
}

export function handleSummary(data) {
  const value = (metric, name) => (data.metrics[metric] ? data.metrics[metric].values[name] : 0);
  const result = {
    answered: value("checks", "passes"),
    failed: value("checks", "fails"),
    dropped: value("dropped_iterations", "count"),
    wall_s: data.state.testRunDurationMs / 1000,
    p50_ms: value("http_req_duration", "med"),
    p99_ms: value("http_req_duration", "p(99)"),
    slo_ms: value("http_req_duration", `p(${__ENV.PERCENTILE})`),
  };
  return { stdout: JSON.stringify(result) + "\n" };
}
