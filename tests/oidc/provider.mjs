// An OpenID provider on loopback for the tests of people: the npm package oidc-provider, with one public client and one
// person, whom it lets in without a page to fill in. Its ID tokens live as briefly as the test wants.
//
//   node provider.mjs MODULE PORT KEY.pem CERTIFICATE.pem TTL_S
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';

const [module, port, key, cert, ttl] = process.argv.slice(2);
const { default: Provider } = await import(module);

const provider = new Provider(`https://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'tamdao',
    application_type: 'native',
    token_endpoint_auth_method: 'none',
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    redirect_uris: ['http://127.0.0.1/callback'],
  }],
  claims: { openid: ['sub', 'groups'] },
  conformIdTokenClaims: false,
  cookies: { keys: ['of a test'] },
  features: { devInteractions: { enabled: false } },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, groups: ['Sở Y tế', 'staff'] }) }),
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  issueRefreshToken: () => true,
  pkce: { required: () => true },
  rotateRefreshToken: true,
  ttl: { IdToken: Number(ttl), AccessToken: 60, Grant: 3600, Interaction: 60, RefreshToken: 3600, Session: 3600 },
});

const answer = provider.callback();
const options = { key: readFileSync(key), cert: readFileSync(cert) };
createServer(options, async (request, response) => {
  if (!request.url.startsWith('/interaction/')) return answer(request, response);
  const { prompt, params, session } = await provider.interactionDetails(request, response);
  if (prompt.name === 'login') {
    return provider.interactionFinished(request, response, { login: { accountId: 'lan' } });
  }
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  return provider.interactionFinished(request, response, { consent: { grantId: await grant.save() } });
}).listen(Number(port), '127.0.0.1');
