// Requests to this server: JSON, and streams of events. Every failure is an `ApiError` whose message can be shown.

const KEY = "nextword-key";

export class ApiError extends Error {
  /** @param {string} message @param {number} status 0 if no answer came @param {object} [error] the server's: `param`, the field at fault; `type` */
  constructor(message, status = 0, { param = null, type = "" } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.param = param;
    this.type = type;
  }
}

export class Api {
  /** @param {(wrong: boolean) => Promise<string|null>} askKey asks the user for the server's key */
  constructor(askKey) {
    this.askKey = askKey;
    this.asking = null;
  }

  /**
   * GET `path`, or POST `body` to it, and read the answer as JSON.
   * @param {string} path @param {any} [body] @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<any>}
   */
  async json(path, body, options = {}) {
    const response = await this.request(path, body, options.signal);
    try {
      return await response.json();
    } catch (error) {
      throw lost(error);
    }
  }

  /**
   * POST `body` and read the answer's events, each parsed from its `data:` line, until the stream ends.
   * @param {string} path @param {any} body @param {{signal?: AbortSignal}} [options]
   * @returns {AsyncGenerator<any>}
   */
  async *events(path, body, options = {}) {
    const response = await this.request(path, body, options.signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
      for (;;) {
        const { value, done } = await reader.read().catch((error) => { throw lost(error); });
        if (done) return;
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        for (const part of parts) {
          const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
          if (!data.length || data[0] === "[DONE]") continue;
          const event = JSON.parse(data.join("\n"));
          if (event.error) throw new ApiError(event.error.message, event.error.code, event.error);
          yield event;
        }
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  /** The response, if it is a success; asks for a key where one is needed. */
  async request(path, body, signal) {
    for (;;) {
      const key = stored();
      const headers = { ...(key && { authorization: `Bearer ${key}` }) };
      if (body !== undefined) headers["content-type"] = "application/json";
      const post = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
      const response = await fetch(path, { ...post, headers, signal, cache: "no-store" }).catch((error) => { throw lost(error); });
      if (response.ok) return response;
      if (response.status === 401) {
        if (stored() !== key) continue; // another request has asked meanwhile
        this.asking ??= this.askKey(Boolean(key)).finally(() => { this.asking = null; });
        const given = await this.asking;
        if (given) { store(given); continue; }
      }
      const { error } = await response.json().catch(() => ({}));
      throw new ApiError(error?.message ?? `the server answered ${response.status}`, response.status, error);
    }
  }
}

/** Whether a failure is only that the user stopped the request. */
export const isStopped = (error) => error?.name === "AbortError";

function lost(error) {
  return isStopped(error) ? error : new ApiError("The server does not answer. Is nextword serve still running?");
}

let inMemory = ""; // where storage is forbidden

function stored() {
  try { return sessionStorage.getItem(KEY) ?? inMemory; } catch { return inMemory; }
}

function store(key) {
  inMemory = key;
  try { sessionStorage.setItem(KEY, key); } catch { /* kept in memory */ }
}
