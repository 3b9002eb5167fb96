// Requests to the process that serves this page; no others are made.
async function answered(response) {
  if (response.ok) return response;
  let text = "the page's own server said " + response.status;
  try {
    text = (await response.json()).error;
  } catch {
    // not ours to read
  }
  throw new Error(text);
}

async function send(path, options) {
  try {
    return await answered(await fetch(path, options));
  } catch (error) {
    if (error instanceof TypeError) throw new Error("the command on this computer has ended");
    throw error;
  }
}

export const about = async () => (await send("/api/about")).json();
export const example = async (number) =>
  (await send("/api/examples/" + number, { method: "POST" })).json();
export const putAway = (key) => fetch("/api/documents/" + key, { method: "DELETE", keepalive: true });

export async function upload(file) {
  const path = "/api/documents?name=" + encodeURIComponent(file.name);
  const headers = { "Content-Type": "application/octet-stream" };
  return (await send(path, { method: "POST", body: file, headers })).json();
}

// Something of the model. `heard` gets each event, the last one is returned. Aborting `signal` ends
// the work on the other side, too.
export async function job(key, name, wanted, signal, heard) {
  const response = await send("/api/documents/" + key + "/" + name, {
    method: "POST",
    body: JSON.stringify(wanted),
    headers: { "Content-Type": "application/json" },
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the command on this computer has ended");
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.event === "error") throw new Error(event.text);
      if (event.event === "done") return event;
      heard(event);
    }
  }
}
