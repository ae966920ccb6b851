"use strict";
// What this page can check by itself, in the browser and with nothing loaded: that the certificate
// in it is whole, that its log leads to the PCRs that were quoted, that one key signed all of it,
// that the page shows what the certificate says, and that dropped files are the certified ones.
// It does not check who vouches for the key; and whoever made the page made this program too.
(() => {
  const $ = (id) => document.getElementById(id);
  const utf8 = new TextEncoder();
  const LARGE = 64 << 20; // bytes; above, a file is hashed in pieces

  class Refused extends Error {}
  const demand = (truth, message) => { if (!truth) throw new Refused(message); };

  // -- bytes ------------------------------------------------------------------------------------
  const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const hex = (data) => Array.from(new Uint8Array(data), (b) => b.toString(16).padStart(2, "0")).join("");
  const unhex = (text) => Uint8Array.from(text.match(/../g) || [], (pair) => parseInt(pair, 16));
  const join = (...parts) => {
    const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) { whole.set(part, at); at += part.length; }
    return whole;
  };
  const sha256 = async (data) => hex(await crypto.subtle.digest("SHA-256", data));

  // RFC 8785: keys in order of their UTF-16 units, numbers as ECMAScript writes them.
  const canonical = (value) => {
    if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
    if (value === null || typeof value !== "object") return JSON.stringify(value);
    const members = Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`);
    return `{${members.join(",")}}`;
  };
  const digestOf = (value) => sha256(utf8.encode(canonical(value)));

  // SHA-256 in pieces, for files that WebCrypto would need in memory all at once (FIPS 180-4).
  const K = new Uint32Array(64);
  const START = new Uint32Array(8);
  {
    let found = 0;
    const fraction = (x) => ((x - Math.floor(x)) * 4294967296) >>> 0;
    for (let n = 2; found < 64; n++) {
      let prime = true;
      for (let d = 2; d * d <= n; d++) if (n % d === 0) { prime = false; break; }
      if (!prime) continue;
      if (found < 8) START[found] = fraction(Math.sqrt(n));
      K[found++] = fraction(Math.cbrt(n));
    }
  }
  class Hasher {
    constructor() { this.h = START.slice(); this.w = new Uint32Array(64); this.rest = new Uint8Array(0); this.length = 0; }
    block(data, at) {
      const w = this.w, h = this.h;
      for (let i = 0; i < 16; i++, at += 4) w[i] = (data[at] << 24) | (data[at + 1] << 16) | (data[at + 2] << 8) | data[at + 3];
      for (let i = 16; i < 64; i++) {
        const x = w[i - 15], y = w[i - 2];
        w[i] = (w[i - 16] + w[i - 7] + (((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3)) +
          (((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10))) | 0;
      }
      let [a, b, c, d, e, f, g, k] = h;
      for (let i = 0; i < 64; i++) {
        const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
        const t1 = (k + s1 + ((e & f) ^ (~e & g)) + K[i] + w[i]) | 0;
        const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
        const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        k = g; g = f; f = e; e = (d + t1) | 0; d = c; c = b; b = a; a = (t1 + t2) | 0;
      }
      h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e; h[5] += f; h[6] += g; h[7] += k;
    }
    update(data) {
      this.length += data.length;
      const whole = this.rest.length ? join(this.rest, data) : data;
      let at = 0;
      for (; at + 64 <= whole.length; at += 64) this.block(whole, at);
      this.rest = whole.slice(at);
    }
    finish() {
      const length = this.length;
      const padding = new Uint8Array(72 - ((length + 8) % 64));
      padding[0] = 0x80;
      new DataView(padding.buffer).setBigUint64(padding.length - 8, BigInt(length) * 8n);
      this.update(padding);
      return Array.from(this.h, (word) => word.toString(16).padStart(8, "0")).join("");
    }
  }
  const hashFile = async (file, progress) => {
    if (file.size <= LARGE) return sha256(await file.arrayBuffer());
    const hasher = new Hasher();
    const step = 16 << 20;
    for (let at = 0; at < file.size; at += step) {
      hasher.update(new Uint8Array(await file.slice(at, at + step).arrayBuffer()));
      progress(Math.min(at + step, file.size) / file.size);
    }
    return hasher.finish();
  };

  // -- TPM structures (TPM 2.0 Library, Part 2) -------------------------------------------------
  class Cursor {
    constructor(data) { this.data = data; this.at = 0; }
    take(count) {
      demand(this.at + count <= this.data.length, "a TPM structure ends too soon");
      this.at += count;
      return this.data.subarray(this.at - count, this.at);
    }
    number(size) { return this.take(size).reduce((sum, byte) => sum * 256 + byte, 0); }
    sized() { return this.take(this.number(2)); }
    done() { demand(this.at === this.data.length, "bytes follow a TPM structure"); }
  }
  const pad = (data, size) => join(new Uint8Array(Math.max(0, size - data.length)), data);
  const url64 = (data) => btoa(String.fromCharCode(...data)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");

  const readKey = async (area) => {
    const cursor = new Cursor(area);
    const kind = cursor.number(2);
    demand(cursor.number(2) === 0x000b, "the attestation key is not named with SHA-256");
    const attributes = cursor.number(4);
    // restricted, sign, fixedTPM, fixedParent, sensitiveDataOrigin; not decrypt
    const needed = [1, 4, 5, 16, 18].every((bit) => (attributes >>> bit) & 1);
    demand(needed && !((attributes >>> 17) & 1), "the key is not an attestation key");
    demand(!(attributes & ~0x000f0ff6), "the key has attributes that no TPM knows");
    cursor.sized();
    demand(cursor.number(2) === 0x0010, "the attestation key has a symmetric algorithm");
    const scheme = cursor.number(2);
    demand(cursor.number(2) === 0x000b, "the attestation key does not sign with SHA-256");
    if (kind === 0x0023) {
      demand(scheme === 0x0018 && cursor.number(2) === 3 && cursor.number(2) === 0x0010, "the key is not ECDSA on P-256");
      const point = join(new Uint8Array([4]), pad(cursor.sized(), 32), pad(cursor.sized(), 32));
      cursor.done();
      const key = await crypto.subtle.importKey("raw", point, { name: "ECDSA", namedCurve: "P-256" }, false, ["verify"]);
      return { ecc: true, verify: (signature, data) => crypto.subtle.verify({ name: "ECDSA", hash: "SHA-256" }, key, signature, data) };
    }
    demand(kind === 0x0001 && scheme === 0x0014, "the key is neither ECDSA nor RSASSA");
    cursor.number(2);
    const exponent = cursor.number(4) || 65537;
    demand(exponent === 65537, "the key has an unusual exponent");
    const modulus = cursor.sized();
    cursor.done();
    const jwk = { kty: "RSA", n: url64(modulus), e: "AQAB", alg: "RS256" };
    const key = await crypto.subtle.importKey("jwk", jwk, { name: "RSASSA-PKCS1-v1_5", hash: "SHA-256" }, false, ["verify"]);
    return { ecc: false, verify: (signature, data) => crypto.subtle.verify("RSASSA-PKCS1-v1_5", key, signature, data) };
  };
  const tpmSignature = (data, key) => {
    const cursor = new Cursor(data);
    demand(cursor.number(2) === (key.ecc ? 0x0018 : 0x0014) && cursor.number(2) === 0x000b, "a quote is signed in another way than its key signs");
    const parts = key.ecc ? [pad(cursor.sized(), 32), pad(cursor.sized(), 32)] : [cursor.sized()];
    cursor.done();
    return join(...parts);
  };
  const derSignature = (data, key) => {
    if (!key.ecc) return data;
    const integer = (at) => {
      const size = data[at + 1];
      let value = data.subarray(at + 2, at + 2 + size);
      const led = value[0] === 0 && value[1] >= 0x80; // the one case in which DER has a leading zero
      demand(data[at] === 2 && value.length === size && (led || (value[0] > 0 && value[0] < 0x80)), "the signature is not DER");
      if (led) value = value.subarray(1);
      demand(value.length <= 32, "the signature is not DER");
      return [pad(value, 32), at + 2 + size];
    };
    demand(data[0] === 0x30 && data[1] === data.length - 2, "the signature is not DER");
    const [r, next] = integer(2);
    const [s, end] = integer(next);
    demand(end === data.length, "the signature is not DER");
    return join(r, s);
  };
  const readQuote = async (quote, key, name) => {
    const message = bytes(quote.message);
    const good = await key.verify(tpmSignature(bytes(quote.signature), key), message);
    demand(good, `${name} was not signed by the attestation key`);
    const cursor = new Cursor(message);
    demand(cursor.number(4) === 0xff544347 && cursor.number(2) === 0x8018, `${name} is not a TPM's quote`);
    const signer = hex(cursor.sized());
    const extra = hex(cursor.sized());
    const clock = cursor.take(8).reduce((sum, byte) => sum * 256n + BigInt(byte), 0n);
    let boot = `${signer} ${cursor.number(4)} ${cursor.number(4)}`;
    demand(cursor.number(1) < 2, `${name} holds a truth value that is none`);
    boot += ` ${hex(cursor.take(8))}`;
    demand(cursor.number(4) === 1 && cursor.number(2) === 0x000b && cursor.number(1) === 3, `${name} is not over the SHA-256 bank`);
    const bits = cursor.take(3);
    const quoted = cursor.sized();
    cursor.done();
    const selected = [...Array(24).keys()].filter((pcr) => (bits[pcr >> 3] >> (pcr & 7)) & 1);
    const values = quote.pcrs.sha256;
    demand(selected.slice(0, 16).every((pcr, place) => pcr === place) && selected.length >= 16, `${name} does not cover every PCR`);
    demand(canonical(selected.map(String).sort()) === canonical(Object.keys(values).sort()), `${name} comes with other PCRs than it covers`);
    demand((await sha256(join(...selected.map((pcr) => unhex(values[pcr]))))) === hex(quoted), `the PCR values beside ${name} are not those that were quoted`);
    return { extra, boot, clock, digest: await sha256(message), values };
  };

  // As `aicert.words.clean` shows a text.
  const clean = (text) => {
    const shown = Array.from(text).slice(0, 301).join("").replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu, "\ufffd");
    const letters = Array.from(shown);
    return letters.length <= 300 ? shown : `${letters.slice(0, 300).join("")}…`;
  };

  // What the page shows, by the names that its elements have in `data-is`.
  const compareShown = async (events, job, outputs, keyid) => {
    const of = (type) => events.filter((event) => event.type === type);
    const [image, start, end] = ["image", "trainingStart", "trainingEnd"].map((type) => of(type)[0]);
    demand(image && start && end, "the log is not that of a whole run");
    const said = new Map();
    const say = (name, ...texts) => said.set(name, texts.join(""));
    say("name", clean(job.spec.name));
    if (job.spec.description) say("description", clean(job.spec.description));
    say("image", `image ${clean(image.reference)}${image.config.sha256}`);
    for (const [number, input] of of("input").entries()) {
      const digest = input.sha256 ? input.sha256 : input.root;
      say(`input ${number}`, `${clean(input.name)} ${clean(input.uri)}${digest}`);
      if (!input.records) continue;
      const { count, method } = input.records;
      say(`records ${number}`, `${count} record${count === 1 ? "" : "s"}, ${method}: each can be proved to be there, and others not`);
    }
    for (const [number, input] of job.spec.inputs.filter((one) => one.certificate).entries()) say(`linked ${number}`, input.certificate);
    if (job.spec.evaluation) say("evaluates", job.spec.inputs.find((one) => one.name === job.spec.evaluation.model).certificate);
    for (const [number, file] of outputs.files.entries()) say(`file ${number}`, clean(file.path), file.sha256);
    const metrics = (end.metrics && end.metrics.values) || {};
    for (const [number, name] of Object.keys(metrics).sort().entries()) {
      const value = metrics[name];
      say(`metric ${number}`, clean(name));
      say(`value ${number}`, clean(typeof value === "string" ? value : JSON.stringify(value)));
    }
    say("command", clean(start.command.join(" ")));
    say("seed", job.spec.seed);
    say("network", clean(start.network));
    say("started", job.startedOn);
    say("finished", outputs.finishedOn);
    say("run", job.run);
    say("root", outputs.root);
    say("key", keyid);
    demand((await sha256(join(...outputs.files.map((file) => unhex(file.sha256))))) === outputs.root, "the root digest is not that of the files");

    const shown = new Set();
    for (const { dataset, textContent } of document.querySelectorAll("[data-is]")) {
      const { is: name } = dataset;
      shown.add(name);
      demand(said.get(name) === textContent, `this page shows something that was not measured (${name}): ${textContent.slice(0, 100)}`);
    }
    const optional = (name) => /^linked /.test(name) || (/^file /.test(name) && Number(name.slice(5)) >= 200);
    for (const name of said.keys()) demand(shown.has(name) || optional(name), `this page leaves out what was measured: ${name}`);
  };

  // -- the certificate --------------------------------------------------------------------------
  const check = async () => {
    const raw = bytes($("certificate").textContent.trim());
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(raw);
    const certificate = JSON.parse(text);
    demand(canonical(certificate) === text, "the certificate is not in its one canonical form");
    demand(certificate.mediaType === "application/vnd.aicert.certificate.v1+json", "this is not a certificate of version 1");
    const digest = await sha256(raw);
    demand($("digest").textContent === digest, "the certificate is not the one whose digest this page shows");

    const { attestationKey, baselineQuote, quote, measurementLog } = certificate.evidence;
    const area = bytes(attestationKey.public);
    const key = await readKey(area);
    const before = await readQuote(baselineQuote, key, "the first quote");
    const after = await readQuote(quote, key, "the last quote");
    demand(before.boot === after.boot && before.clock <= after.clock, "the TPM was reset, restarted or changed during the run");

    const pcrs = { ...before.values };
    const events = [];
    for (const [number, record] of measurementLog.entries()) {
      const measured = await digestOf(record.content);
      demand(record.recnum === number && record.digests.length === 1 && record.digests[0].digest === measured, `record ${number} of the log was changed`);
      const pcr = { outputs: 8, channelKey: 15 }[record.content.type] || 14;
      demand(record.pcr === pcr, `record ${number} of the log is bound to another PCR`);
      pcrs[pcr] = await sha256(join(unhex(pcrs[pcr]), unhex(measured)));
      events.push(record.content);
    }
    for (const pcr of Object.keys(after.values)) demand(pcrs[pcr] === after.values[pcr], `the log does not account for PCR ${pcr}`);

    const job = events.find((event) => event.type === "job");
    const outputs = events[events.length - 1];
    demand(job && outputs.type === "outputs", "the log is not that of a whole run");
    demand(job.baseline.sha256 === before.digest && job.nonce === before.extra, "the log begins with another quote");

    const envelope = certificate.dsseEnvelope;
    const payload = bytes(envelope.payload);
    const pae = join(utf8.encode(`DSSEv1 ${envelope.payloadType.length} ${envelope.payloadType} ${payload.length} `), payload);
    demand(envelope.signatures[0].keyid === `000b${await sha256(area)}`, "the statement names another key");
    demand(await key.verify(derSignature(bytes(envelope.signatures[0].sig), key), pae), "the statement was not signed by the attestation key");
    demand((await sha256(pae)) === after.extra, "the last quote is not bound to the statement");
    const statement = JSON.parse(new TextDecoder().decode(payload));
    const { predicate, subject } = statement;
    let subjects = outputs.files.map((file) => ({ name: file.path, digest: { sha256: file.sha256 } }));
    let spec = predicate.buildDefinition && predicate.buildDefinition.externalParameters.spec;
    if (job.spec.evaluation) {
      const name = job.spec.evaluation.model;
      const model = events.find((event) => event.type === "input" && event.name === name);
      const asked = job.spec.inputs.find((input) => input.name === name);
      subjects = [
        { name, digest: { sha256: model.sha256 || model.root } },
        { name: `${name}/certificate`, digest: { sha256: asked.certificate } },
      ];
      spec = predicate.configuration[0].annotations.spec;
    }
    demand(canonical(subject) === canonical(subjects), "the statement names other files than were measured");
    demand(canonical(spec || null) === canonical(job.spec), "the statement names another spec than was measured");

    await compareShown(events, job, outputs, envelope.signatures[0].keyid);
    return outputs.files;
  };

  const say = (target, kind, title, lines = [], note = "", open = []) => {
    target.className = `result ${kind}`;
    target.replaceChildren();
    const add = (parent, tag, text) => { const e = document.createElement(tag); e.textContent = text; parent.append(e); return e; };
    add(target, "p", title);
    if (lines.length) {
      const list = document.createElement("ul");
      for (const line of lines.slice(0, 50)) add(list, "li", line);
      if (lines.length > 50) add(list, "li", `… and ${lines.length - 50} more`);
      target.append(list);
    }
    if (note) add(target, "p", note);
    if (!open.length) return;
    add(target, "p", "Not checked here, but by the command:");
    const list = document.createElement("ul");
    list.className = "limits";
    for (const line of open) add(list, "li", line);
    target.append(list);
  };

  let files = null;
  const self = async () => {
    if (!globalThis.crypto || !crypto.subtle) {
      say($("self"), "warn", "This page cannot check itself here.", [], "Browsers allow it only on secure pages: save the page and open it from your disk.");
      return;
    }
    try {
      files = await check();
      say($("self"), "good", "This page agrees with the certificate in it. That is not yet a verdict.", [
        "One key signed the statement and both quotes, in one boot of its TPM.",
        "The log leads to the PCRs that were quoted: no event was left out, added or changed.",
        "The names, addresses, digests, metrics and the command shown under Details are those of the log.",
      ], "", [
        "who vouches for that key: anybody can have a key of their own sign such a record",
        "how the machine booted, timestamps, your policy, the certificates that this one names",
        "that the events are all that a run must have, and that nothing else stands in the statement",
        "that this program is honest: whoever made the page made it too",
      ]);
    } catch (error) {
      files = null;
      const reason = error instanceof Refused ? error.message : `it cannot be read (${error.message})`;
      say($("self"), "bad", "REFUSED. Do not trust this page.", [reason]);
    }
  };

  // -- dropped files ----------------------------------------------------------------------------
  const compare = async (given, folder) => {
    await ready;
    const target = $("files");
    if (!files) { say(target, "bad", "REFUSED. The certificate in this page is not whole, so nothing can be compared with it."); return; }
    if (!given.length) return;
    const byPath = new Map(files.map((file) => [file.path, file]));
    const byDigest = new Map(files.map((file) => [file.sha256, file]));
    const good = [], bad = [], extra = [];
    const seen = new Set();
    for (const [place, { path, file }] of given.entries()) {
      const progress = (part) => say(target, "warn", `Reading ${place + 1} of ${given.length}: ${path} (${Math.round(part * 100)} %)`);
      progress(0);
      let digest;
      try { digest = await hashFile(file, progress); } catch (error) { bad.push(`${path}: cannot be read (${error.message})`); continue; }
      const named = folder ? byPath.get(path) : byDigest.get(digest) || files.find((f) => f.path.split("/").pop() === path);
      if (!named) { (folder ? extra : bad).push(folder ? path : `${path}: not one of the certified files`); continue; }
      seen.add(named.path);
      if (named.sha256 === digest) good.push(named.path === path ? path : `${path} is ${named.path}`);
      else bad.push(`${path}: not the certified file (sha256 ${digest.slice(0, 16)}…, certified ${named.sha256.slice(0, 16)}…)`);
    }
    const missing = folder ? files.filter((file) => !seen.has(file.path)).map((file) => `${file.path}: not there`) : [];
    if (bad.length || missing.length) say(target, "bad", "REFUSED. These are not the certified files.", [...bad, ...missing], "Do not load them.");
    else if (extra.length) say(target, "warn", `All ${files.length} certified files are here and unaltered, and others besides.`, extra.map((path) => `${path}: not certified`), "Load nothing of the others.");
    else if (folder || good.length === files.length) say(target, "good", `All ${files.length} certified files are here and unaltered.`, good);
    else say(target, "good", `Certified and unaltered: ${good.length} of ${files.length} files.`, good);
  };
  const strip = (list) => {
    // A folder's own name is not part of the paths in it.
    const top = list[0].path.split("/")[0];
    const inside = list.every(({ path }) => path.startsWith(`${top}/`));
    return inside ? list.map(({ path, file }) => ({ path: path.slice(top.length + 1), file })) : list;
  };
  const walk = async (entry, path, found) => {
    if (entry.isFile) {
      found.push({ path, file: await new Promise((good, bad) => entry.file(good, bad)) });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const batch = await new Promise((good, bad) => reader.readEntries(good, bad));
      if (!batch.length) return;
      for (const child of batch) await walk(child, `${path}/${child.name}`, found);
    }
  };
  const drop = $("drop");
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
    const plain = [...event.dataTransfer.files].map((file) => ({ path: file.name, file }));
    if (!entries.some((entry) => entry.isDirectory)) { await compare(plain, false); return; }
    const found = [];
    for (const entry of entries) await walk(entry, entry.name, found);
    await compare(entries.length === 1 ? strip(found) : found, true);
  });
  $("pick").addEventListener("change", (event) => {
    const given = [...event.target.files].map((file) => ({ path: file.name, file }));
    event.target.value = "";
    compare(given, false);
  });
  $("pick-folder").addEventListener("change", (event) => {
    const given = [...event.target.files].map((file) => ({ path: file.webkitRelativePath, file }));
    event.target.value = "";
    if (given.length) compare(strip(given), true);
  });

  const ready = self();
})();
