// A server on Node.js: timers, a worker thread, the thread pool, a child, connections over unix and TCP, garbage.
'use strict';
const http = require('http');
const crypto = require('crypto');
const {Worker, isMainThread, parentPort} = require('worker_threads');
const {spawn} = require('child_process');

if (!isMainThread) {
  // The worker adds what it is told and answers with the sum of all.
  let sum = 0;
  parentPort.on('message', (n) => parentPort.postMessage(sum += n));
} else {
  const [socket, port, period] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
  const facts = {pid: process.pid, token: crypto.randomBytes(8).toString('hex'), ticks: 0, sums: 0, hashes: 0, lines: 0, signals: 0, requests: 0, errors: []};
  const wrong = (text) => facts.errors.push(text);
  const kept = new Map();
  for (let n = 0; n < 20000; n++) kept.set(`key ${n}`, {n, text: `value ${n * n}`});

  setInterval(() => facts.ticks++, period);
  // Garbage, and a look at what must outlive it.
  setInterval(() => {
    let junk = [];
    for (let n = 0; n < 20000; n++) junk.push({n: [n, String(n)]});
    const n = junk.length % 19997 + facts.ticks % 19000;
    if (kept.get(`key ${n % 20000}`).text !== `value ${(n % 20000) ** 2}`) wrong(`key ${n} is gone`);
  }, 250);

  const worker = new Worker(__filename);
  let expected = 0;
  worker.on('message', (sum) => {
    if (sum !== expected) wrong(`the worker's sum is ${sum}, not ${expected}`);
    facts.sums++;
    setTimeout(() => worker.postMessage((expected += facts.sums, facts.sums)), 50);
  });
  worker.on('error', (error) => wrong(`worker: ${error}`));
  worker.postMessage(0);

  const right = crypto.scryptSync('password', 'salt', 32, {N: 1024}).toString('hex');
  const hash = () => crypto.scrypt('password', 'salt', 32, {N: 1024}, (error, key) => {
    if (error || key.toString('hex') !== right) wrong(`scrypt: ${error}`);
    facts.hashes++;
    setTimeout(hash, 100);
  });
  hash();

  const child = spawn('cat', [], {stdio: ['pipe', 'pipe', 'inherit']});
  facts.child = child.pid;
  child.on('exit', (code) => wrong(`the child ended with ${code}`));
  child.stdout.on('data', (data) => {
    if (String(data) !== `line ${facts.lines}\n`) wrong(`the child says ${data}`);
    facts.lines++;
    setTimeout(() => child.stdin.write(`line ${facts.lines}\n`), 50);
  });
  child.stdin.write('line 0\n');

  process.on('SIGHUP', () => facts.signals++);
  process.on('warning', (warning) => wrong(String(warning)));

  const serve = (request, response) => {
    facts.requests++;
    const [, word, rest] = request.url.split('/');
    const answer = (text) => response.end(text);
    if (word === 'facts') answer(JSON.stringify({...facts, now: Date.now() / 1000}));
    else if (word === 'late') setTimeout(() => answer(`late ${rest}`), Number(rest) * 1000);
    else answer([...rest].reverse().join(''));
  };
  for (const place of [socket, {port, host: '127.0.0.1'}]) {
    const server = http.createServer(serve);
    server.keepAliveTimeout = 0;
    server.requestTimeout = 0;
    server.listen(place);
  }
}
