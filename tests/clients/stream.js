// Streams requests to a teacher with @grpc/grpc-js; prints how many answers came, each with the id of a request.
// node stream.js ADDRESS COUNT, in a directory with ca.pem, token.txt and proto/.
const fs = require('fs');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, count] = [process.argv[2], Number(process.argv[3])];
const int32 = (...values) => Buffer.from(Int32Array.from(values).buffer);
const definition = loader.loadSync('teacher/v1/teacher.proto', {includeDirs: ['proto'], longs: String, oneofs: true});
const {TeacherService} = grpc.loadPackageDefinition(definition).teacher.v1;
const client = new TeacherService(address, grpc.credentials.createSsl(fs.readFileSync('ca.pem')));
const metadata = new grpc.Metadata();
metadata.set('authorization', `Bearer ${fs.readFileSync('token.txt', 'utf8').trim()}`);
const stream = client.StreamScore(metadata, {deadline: Date.now() + 60000});
const seen = new Set();
stream.on('data', (message) => {
  if (message.result === 'response') seen.add(message.response.requestId);
  if (seen.size === count) stream.end();
});
stream.on('end', () => {
  console.log(JSON.stringify([...seen].map(Number).sort((a, b) => a - b)));
  client.close();
});
stream.on('error', (error) => { console.error(error.message); process.exitCode = 1; client.close(); });
for (let i = 1; i <= count; i++) {
  stream.write({request: {
    requestId: i, mode: 'HISTORY_MODE_WINDOW', historyTokens: int32(i % 40), historyLengths: int32(1),
    candidateTokens: int32(4, 5), candidateLengths: int32(2),
  }});
}
