/* The states of jobs on Girder's job page, and the settings of the plugin. */
(function () {
    'use strict';

    // The numbers are those of girder_worker. Where its plugin is there too, either may
    // come first: both say the same.
    const STATUSES = {
        DASK_FETCHING_INPUT: {
            value: 820, text: 'Fetching input', icon: 'icon-download', color: '#89d2e2'
        },
        DASK_CONVERTING_INPUT: {
            value: 821, text: 'Converting input', icon: 'icon-shuffle', color: '#92f5b5'
        },
        DASK_CONVERTING_OUTPUT: {
            value: 822, text: 'Converting output', icon: 'icon-shuffle', color: '#92f5b5'
        },
        DASK_PUSHING_OUTPUT: {
            value: 823, text: 'Pushing output', icon: 'icon-upload', color: '#89d2e2'
        },
        DASK_CANCELING: {
            value: 824, text: 'Canceling', icon: 'icon-spin3 animate-spin', color: '#f89406'
        }
    };

    girder.events.on('g:appload.before', () => {
        const jobs = girder.plugins.jobs;
        if (!jobs || !jobs.JobStatus) {
            return;
        }
        const JobStatus = jobs.JobStatus;
        JobStatus.registerStatus(STATUSES);
        const isCancelable = JobStatus.isCancelable;
        JobStatus.isCancelable = function (job) {
            if (job.get('handler') !== 'dask_handler') {
                return isCancelable.call(JobStatus, job);
            }
            return ![
                JobStatus.SUCCESS, JobStatus.ERROR, JobStatus.CANCELED, JobStatus.DASK_CANCELING
            ].includes(job.get('status'));
        };
    });

    const { restRequest } = girder.rest;
    const KEYS = ['dask.scheduler_address', 'dask.api_url', 'dask.direct_path'];

    const FORM = `
      <div class="g-config-breadcrumb-container"></div>
      <p>Where jobs run, and how they reach this Girder.</p>
      <form id="g-dask-settings-form" role="form">
        <div class="form-group">
          <label class="control-label" for="g-dask-scheduler-address">Dask scheduler</label>
          <input class="input-sm form-control" id="g-dask-scheduler-address" type="text"
                 placeholder="tcp://dask.example.org:8786"/>
        </div>
        <div class="form-group">
          <label class="control-label" for="g-dask-api-url">Girder API URL for workers</label>
          <input class="input-sm form-control" id="g-dask-api-url" type="text"
                 placeholder="API URL (default: as the user's request reached it)"/>
        </div>
        <div class="checkbox">
          <label class="control-label" for="g-dask-direct-path">
            <input id="g-dask-direct-path" type="checkbox"/>
            <span>Workers that see Girder's file system read its files in place</span>
          </label>
        </div>
        <p class="g-validation-failed-message" id="g-dask-settings-error-message"></p>
        <input class="btn btn-sm btn-primary" type="submit" value="Save"/>
      </form>`;

    const ConfigView = girder.views.View.extend({
        events: {
            'submit #g-dask-settings-form': function (e) {
                e.preventDefault();
                this._save();
            }
        },

        initialize: function () {
            restRequest({
                method: 'GET', url: 'system/setting', data: { list: JSON.stringify(KEYS) }
            }).done((values) => {
                this.render();
                this.$('#g-dask-scheduler-address').val(values['dask.scheduler_address']);
                this.$('#g-dask-api-url').val(values['dask.api_url']);
                this.$('#g-dask-direct-path').prop('checked', values['dask.direct_path']);
            });
        },

        render: function () {
            this.$el.html(FORM);
            new girder.views.widgets.PluginConfigBreadcrumbWidget({
                pluginName: 'Dask',
                el: this.$('.g-config-breadcrumb-container'),
                parentView: this
            }).render();
            return this;
        },

        _save: function () {
            this.$('#g-dask-settings-error-message').empty();
            const list = [
                { key: KEYS[0], value: this.$('#g-dask-scheduler-address').val().trim() },
                { key: KEYS[1], value: this.$('#g-dask-api-url').val().trim() },
                { key: KEYS[2], value: this.$('#g-dask-direct-path').is(':checked') }
            ];
            restRequest({
                method: 'PUT', url: 'system/setting', data: { list: JSON.stringify(list) },
                error: null
            }).done(() => {
                girder.events.trigger('g:alert', {
                    icon: 'ok', text: 'Settings saved.', type: 'success', timeout: 4000
                });
            }).fail((response) => {
                this.$('#g-dask-settings-error-message').text(response.responseJSON.message);
            });
        }
    });

    girder.utilities.PluginUtils.exposePluginConfig('dask', 'plugins/dask/config');
    girder.router.route('plugins/dask/config', 'daskConfig', function () {
        girder.events.trigger('g:navigateTo', ConfigView);
    });
})();
